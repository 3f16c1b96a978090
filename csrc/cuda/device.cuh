// Common to all kernel files: element types and their conversions, shared memory, and the launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef TSS_EMULATED
#include "emulator/language.h"
#else
#include <cuda_runtime.h>
#endif

#include "cuda/instructions.cuh"
#include "cuda/launch.cuh"

namespace tss {

constexpr int warp_size = 32;
constexpr unsigned whole_warp = 0xFFFFFFFFu;

#ifndef TSS_EMULATED
__device__ __forceinline__ float to_float(bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(float16 value) { return __half2float(value); }
__device__ __forceinline__ bfloat16 to_bfloat16(float value) { return __float2bfloat16_rn(value); }
__device__ __forceinline__ float16 to_float16(float value) { return __float2half_rn(value); }
#endif
__device__ __forceinline__ float to_float(float value) { return value; }

// Convert a float32 value to another type, rounded to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float value) {
    if constexpr (std::is_same_v<T, bfloat16>) return to_bfloat16(value);
    else if constexpr (std::is_same_v<T, float16>) return to_float16(value);
    else return static_cast<T>(value);
}

// Return the block's dynamic shared memory, aligned to 1,024 bytes.
__device__ __forceinline__ char* dynamic_shared() {
#ifdef TSS_EMULATED
    return emulator::shared_memory();
#else
    extern __shared__ __align__(1024) char memory[];
    return memory;
#endif
}

__host__ __device__ constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

__host__ __device__ inline bool starts_evenly(const void* address, std::size_t bytes = 16) {
    return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

}  // namespace tss
