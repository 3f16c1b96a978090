// Reading and writing numbers of any dtype, a block at a time. Included once for each instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/half.h"
#include "kernels.h"

namespace tss::TSS_ISA {
namespace {

// Elements processed at a time, few enough that converted values stay in the first-level cache. A multiple of 8.
constexpr int64_t block = 1024;

template <class T>
void read_halves(const uint16_t* from, int64_t count, T* to) {
    int64_t i = 0;
#if defined(__F16C__)
    if constexpr (sizeof(T) == 4)
        for (; i + 8 <= count; i += 8)
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < count; ++i) to[i] = from_half(from[i]);
}

template <class T>
void write_halves(const T* from, int64_t count, uint16_t* to) {
    int64_t i = 0;
#if defined(__F16C__)
    if constexpr (sizeof(T) == 4)
        for (; i + 8 <= count; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; ++i) to[i] = to_half(static_cast<float>(from[i]));
}

// T is float or double.
template <class T>
constexpr Kind kind_of = sizeof(T) == 4 ? Kind::float32 : Kind::float64;

// Read `count` numbers from `at` on, rounded to T where they are wider.
template <class T>
void read(Numbers from, int64_t at, int64_t count, T* to) {
    if (from.kind == Kind::float32) {
        const float* values = static_cast<const float*>(from.data) + at;
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(values[i]);
    } else if (from.kind == Kind::float64) {
        const double* values = static_cast<const double*>(from.data) + at;
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(values[i]);
    } else if (from.kind == Kind::float16) {
        read_halves(static_cast<const uint16_t*>(from.data) + at, count, to);
    } else {
        const uint16_t* values = static_cast<const uint16_t*>(from.data) + at;
        for (int64_t i = 0; i < count; ++i) to[i] = from_bfloat(values[i]);
    }
}

// Write `count` numbers from `at` on, rounded to nearest, ties to even; 16-bit dtypes through float, as PyTorch does.
template <class T>
void write(const T* from, int64_t count, Numbers to, int64_t at) {
    if (to.kind == Kind::float32) {
        float* values = static_cast<float*>(to.data) + at;
        for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(from[i]);
    } else if (to.kind == Kind::float64) {
        double* values = static_cast<double*>(to.data) + at;
        for (int64_t i = 0; i < count; ++i) values[i] = static_cast<double>(from[i]);
    } else if (to.kind == Kind::float16) {
        write_halves(from, count, static_cast<uint16_t*>(to.data) + at);
    } else {
        uint16_t* values = static_cast<uint16_t*>(to.data) + at;
        for (int64_t i = 0; i < count; ++i) values[i] = to_bfloat(static_cast<float>(from[i]));
    }
}

// Return a pointer to the numbers themselves if they are of type T, else to a copy in the buffer, which holds a block.
template <class T>
T* values_of(Numbers numbers, int64_t at, int64_t count, T* buffer) {
    if (numbers.kind == kind_of<T>) return static_cast<T*>(numbers.data) + at;
    read(numbers, at, count, buffer);
    return buffer;
}

// Write the numbers back after a change of what `values_of` returned.
template <class T>
void put_back(const T* values, int64_t count, Numbers numbers, int64_t at) {
    if (numbers.kind != kind_of<T>) write(values, count, numbers, at);
}

}  // namespace
}  // namespace tss::TSS_ISA
