// Where a launch goes, and element types by the numbers that Python passes.
#pragma once

#include <cstdint>

namespace tss {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

// The device's number and the address of its stream.
struct Target {
    int device = 0;
    std::uintptr_t stream = 0;
};

}  // namespace tss
