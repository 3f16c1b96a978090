// What bindings.cpp calls: one function per operation, contiguous operands unless strides are given.
#pragma once

#include <cstdint>

#include "cuda/target.h"

namespace tss {

// Scores (rows, columns) and where their gates go; rows may be 0.
struct PackArguments {
    const void* scores;
    std::uint8_t* packed;
    std::int64_t rows, columns;
};
void pack_gates(const PackArguments& first, const PackArguments& second, Dtype dtype, float threshold, Target target);
void unpack_gates(const std::uint8_t* packed, bool* gates, std::int64_t rows, std::int64_t columns, Target target);

// W * g: by float32 scores, whose gates are written to `packed`, or, without scores, by `packed`.
struct MaskArguments {
    const float* scores;
    std::uint8_t* packed;
    const void* weight;
    void* masked;
    std::int64_t rows, columns;
    int element_bytes;
    float threshold;
};
void mask_weight(const MaskArguments& arguments, Target target);

}  // namespace tss
