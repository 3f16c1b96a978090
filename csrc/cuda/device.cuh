// What every kernel file needs: the launch, element types and their conversions, and shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef TSS_EMULATED
#include "emulator/language.h"
#else
#include <cuda_runtime.h>
#endif

#include "cuda/instructions.cuh"
#include "cuda/target.h"

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

// A float32 value in another type, rounded to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float value) {
    if constexpr (std::is_same_v<T, bfloat16>) return to_bfloat16(value);
    else if constexpr (std::is_same_v<T, float16>) return to_float16(value);
    else return static_cast<T>(value);
}

// The block's dynamic shared memory, on a boundary of 1,024 bytes.
__device__ __forceinline__ char* dynamic_shared() {
#ifdef TSS_EMULATED
    return emulator::shared_memory();
#else
    extern __shared__ __align__(1024) char memory[];
    return memory;
#endif
}

__host__ __device__ constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline bool starts_evenly(const void* address, std::size_t bytes = 16) {
    return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

#ifndef TSS_EMULATED
inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes a device current for a launch and leaves the one that was current before.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "asking for the current device");
        changed_ = before_ != device;
        if (changed_) check(cudaSetDevice(device), "choosing the device");
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};
#endif

constexpr std::size_t usual_shared_bytes = 48 * 1024;  // more must be asked for

// Starts a kernel; returns at once. Throws std::runtime_error with the runtime's own words.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes, Target target,
            Arguments... arguments) {
    if (blocks <= 0) return;
#ifdef TSS_EMULATED
    (void)target;
    emulator::run(dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), shared_bytes,
                  [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
    OnDevice current(target.device);
    if (shared_bytes > usual_shared_bytes) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
              "asking for shared memory");
    }
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, reinterpret_cast<cudaStream_t>(target.stream)>>>(
        static_cast<Parameters>(arguments)...);
    check(cudaGetLastError(), "launching a kernel");
#endif
}

}  // namespace tss
