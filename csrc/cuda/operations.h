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

// y = x (W * g)ᵀ + b, or, `transposed`, dx = dy (W * g). Activations have any strides; weight (out, in), packed gates
// (out, ceil(in / 8)), bias (out,) and the result are contiguous. Scores are float32 (out, in): compared in place of
// gates that are read, which are written to `packed` then. Every tiling but the general one wants rows of activations
// and weight on boundaries of 16 bytes and contiguous columns; those with groups want Hopper's instructions. Scores know
// the general tiling and the small one. float32 has one of its own, which takes anything.
enum class Tiling : int { general = 0, small = 1, narrow = 2, wide = 3, narrow_groups = 4, wide_groups = 5 };
struct ProductArguments {
    const void* activations;
    std::int64_t rows, row_stride, column_stride;
    const void* weight;
    std::int64_t out_features, in_features;
    std::uint8_t* packed;
    const float* scores;
    float threshold;
    const void* bias;
    void* result;
    bool transposed;
    Tiling tiling;
};
void gated_product(const ProductArguments& arguments, Dtype dtype, Target target);

// grad = (dyᵀ x) * W * (1 - I), float32 (out, in). Rows are summed in ranges of range_rows, a number that
// scores_grad_range_rows gives; where there are several, `partial` is float32 (ranges, out, in).
struct ScoresGradArguments {
    const void* dy;
    std::int64_t dy_row_stride, dy_column_stride;
    const void* x;
    std::int64_t x_row_stride, x_column_stride;
    std::int64_t rows, out_features, in_features;
    const void* weight;
    const float* importance;
    float* grad;
    float* partial;
    std::int64_t range_rows;
};
std::int64_t scores_grad_range_rows(std::int64_t rows, std::int64_t out_features, std::int64_t in_features);
void scores_grad(const ScoresGradArguments& arguments, Dtype dtype, Target target);

}  // namespace tss
