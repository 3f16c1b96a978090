// Gates as bits: a byte holds eight neighbouring columns, the first in the lowest bit; each row starts with a byte and
// is padded with 0.
#pragma once

#include "cuda/device.cuh"

namespace tss {

constexpr int gate_threads = 256;
constexpr int gates_of_byte = 8;

// Return the threshold as PyTorch compares with it: rounded to the scores' type.
template <class T>
__device__ __forceinline__ float bound_of(float threshold) {
    return to_float(from_float<T>(threshold));
}

// Load eight values from an address of any alignment, or 16 bytes at a time where `aligned` says that it is possible.
template <class T>
__device__ __forceinline__ void load_eight(const T* from, int valid, bool aligned, float (&values)[gates_of_byte], float other) {
    if (aligned && valid == gates_of_byte) {
        alignas(16) T raw[gates_of_byte];
#pragma unroll
        for (int part = 0; part < int(sizeof(raw) / 16); ++part) {
            reinterpret_cast<uint4*>(raw)[part] = reinterpret_cast<const uint4*>(from)[part];
        }
#pragma unroll
        for (int i = 0; i < gates_of_byte; ++i) values[i] = to_float(raw[i]);
    } else {
#pragma unroll
        for (int i = 0; i < gates_of_byte; ++i) values[i] = i < valid ? to_float(from[i]) : other;
    }
}

__device__ __forceinline__ unsigned bits_of(const float (&scores)[gates_of_byte], float bound) {
    unsigned byte = 0;
#pragma unroll
    for (int i = 0; i < gates_of_byte; ++i) byte |= unsigned(scores[i] >= bound) << i;  // false for NaN
    return byte;
}

// Return a mask of a register's halves: bit 0 of `lower` selects the lower one, bit 0 of `upper` the upper.
__device__ __forceinline__ unsigned half_mask(unsigned lower, unsigned upper) {
    return (lower & 1) * 0x0000FFFFu + (upper & 1) * 0xFFFF0000u;
}

// Return a register's one or two elements, each kept or set to 0 by its gate; `position` elements come before them.
template <int element_bytes>
__device__ __forceinline__ unsigned select(unsigned elements, unsigned gates, int position) {
    if constexpr (element_bytes == 2) return elements & half_mask(gates >> position, gates >> (position + 1));
    else return gates >> position & 1 ? elements : 0;
}

// A contiguous matrix whose gates are packed, unpacked or applied: a thread takes one byte of gates.
struct GateMatrix {
    const void* scores = nullptr;
    std::uint8_t* packed = nullptr;
    std::int64_t rows = 0, columns = 0;

    __host__ __device__ std::int64_t row_bytes() const { return (columns + gates_of_byte - 1) / gates_of_byte; }
    __host__ __device__ std::int64_t bytes() const { return rows * row_bytes(); }
};

// Position of one byte of gates: the index in the matrix of its first element, and how many columns it has.
struct ByteOfGates {
    std::int64_t first;
    int valid;

    __device__ ByteOfGates(std::int64_t byte, std::int64_t columns) {
        const std::int64_t row_bytes = (columns + gates_of_byte - 1) / gates_of_byte;
        const std::int64_t row = byte / row_bytes, column = (byte - row * row_bytes) * gates_of_byte;
        first = row * columns + column;
        valid = static_cast<int>(min(static_cast<std::int64_t>(gates_of_byte), columns - column));
    }
};

}  // namespace tss
