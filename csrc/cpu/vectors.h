// Vectors of an instruction set with fused multiply-add, from which the products are built. Included once for each
// instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tss::TSS_ISA {
namespace {

// Unsigned integer type for the bits of a number.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

// `width` numbers. They are loaded from memory as bits, so that masks can be applied there as integers.
#if defined(__AVX512F__)
template <class T>
struct Vector;
template <>
struct Vector<float> {
    static constexpr int width = 16;
    __m512 value;
    static Vector zero() { return {_mm512_setzero_ps()}; }
    static Vector all(float number) { return {_mm512_set1_ps(number)}; }
    static Vector load(const uint32_t* from) { return {_mm512_castsi512_ps(_mm512_loadu_si512(from))}; }
    void multiply_add(Vector a, Vector b) { value = _mm512_fmadd_ps(a.value, b.value, value); }
    void add_to(float* sums) const { _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), value)); }
};
template <>
struct Vector<double> {
    static constexpr int width = 8;
    __m512d value;
    static Vector zero() { return {_mm512_setzero_pd()}; }
    static Vector all(double number) { return {_mm512_set1_pd(number)}; }
    static Vector load(const uint64_t* from) { return {_mm512_castsi512_pd(_mm512_loadu_si512(from))}; }
    void multiply_add(Vector a, Vector b) { value = _mm512_fmadd_pd(a.value, b.value, value); }
    void add_to(double* sums) const { _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), value)); }
};
#elif defined(__AVX2__) && defined(__FMA__)
inline __m256i load_bits(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
template <class T>
struct Vector;
template <>
struct Vector<float> {
    static constexpr int width = 8;
    __m256 value;
    static Vector zero() { return {_mm256_setzero_ps()}; }
    static Vector all(float number) { return {_mm256_set1_ps(number)}; }
    static Vector load(const uint32_t* from) { return {_mm256_castsi256_ps(load_bits(from))}; }
    void multiply_add(Vector a, Vector b) { value = _mm256_fmadd_ps(a.value, b.value, value); }
    void add_to(float* sums) const { _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), value)); }
};
template <>
struct Vector<double> {
    static constexpr int width = 4;
    __m256d value;
    static Vector zero() { return {_mm256_setzero_pd()}; }
    static Vector all(double number) { return {_mm256_set1_pd(number)}; }
    static Vector load(const uint64_t* from) { return {_mm256_castsi256_pd(load_bits(from))}; }
    void multiply_add(Vector a, Vector b) { value = _mm256_fmadd_pd(a.value, b.value, value); }
    void add_to(double* sums) const { _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), value)); }
};
#else
template <class T>
struct Vector {
    static constexpr int width = 16 / sizeof(T);
    T value[width];
    static Vector zero() { return {}; }
    static Vector all(T number) {
        Vector made;
        for (T& one : made.value) one = number;
        return made;
    }
    static Vector load(const Bits<T>* from) {
        Vector made;
        std::memcpy(made.value, from, sizeof made.value);
        return made;
    }
    void multiply_add(Vector a, Vector b) {
        for (int i = 0; i < width; ++i) value[i] = fused(a.value[i], b.value[i], value[i]);
    }
    void add_to(T* sums) const {
        for (int i = 0; i < width; ++i) sums[i] += value[i];
    }
};
#endif

}  // namespace
}  // namespace tss::TSS_ISA
