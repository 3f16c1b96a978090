// nvcc's additions to C++ for a C++ compiler, as far as the kernels of csrc/cuda need them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "common/half.h"
#include "emulator/fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using cudaStream_t = void*;
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

inline void __syncthreads() { tss::emulator::block_barrier(); }
inline void __trap() { std::abort(); }
inline void __syncwarp() { tss::emulator::warp_barrier(); }

// Return the values of all lanes, for a shuffle or ballot.
template <class T>
const T* tss_exchanged(const T& value) {
    tss::emulator::count(tss::emulator::counts.exchanges);
    return tss::emulator::exchange(value);
}

inline unsigned __ballot_sync(unsigned, bool value) {
    const bool* all = tss_exchanged(value);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < 32; ++lane) bits |= unsigned(all[lane]) << lane;
    return bits;
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return tss_exchanged(value)[lane & 31];
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return tss_exchanged(value)[tss::emulator::lane() ^ unsigned(mask)];
}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
    const unsigned from = tss::emulator::lane() + delta;
    const T* all = tss_exchanged(value);
    return from < 32 ? all[from] : value;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
inline int __double2loint(double value) { std::int64_t bits; std::memcpy(&bits, &value, 8); return static_cast<int>(bits); }
inline int __double2hiint(double value) { std::int64_t bits; std::memcpy(&bits, &value, 8); return static_cast<int>(bits >> 32); }
inline double __hiloint2double(int high, int low) {
    const std::uint64_t bits = std::uint64_t(static_cast<unsigned>(high)) << 32 | static_cast<unsigned>(low);
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}
inline float __fsqrt_rn(float value) { return std::sqrt(value); }
inline float __fdiv_rn(float a, float b) { return a / b; }

template <class T, class U>
T atomicAdd(T* target, U value) {
    ++tss::emulator::counts.atomics;
    const T before = *target;
    *target = before + static_cast<T>(value);
    return before;
}

using std::max;
using std::min;
