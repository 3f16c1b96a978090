// The masked weight and the last factors of the score gradient; the BLAS computes the products between them. Included
// once for each instruction set.
#pragma once

#include "gates.h"

namespace tss::TSS_ISA {
namespace {

// U is an unsigned integer as wide as an element of the weight, which is selected by AND: an off entry is 0 whatever
// the weight is.
template <class U>
inline void mask_each(const U* weight, unsigned bits, int64_t count, U* masked) {
    for (int64_t i = 0; i < count; ++i) masked[i] = weight[i] & static_cast<U>(0 - static_cast<U>(bits >> i & 1u));
}

template <class U>
inline void mask8(const U* weight, unsigned bits, U* masked) {
    mask_each(weight, bits, 8, masked);
}

#if defined(__AVX2__)
inline void mask8(const uint16_t* weight, unsigned bits, uint16_t* masked) {
    const __m128i select = _mm_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128);
    const __m128i gate = _mm_cmpeq_epi16(_mm_and_si128(_mm_set1_epi16(static_cast<short>(bits)), select), select);
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(masked), _mm_and_si128(values, gate));
}

inline void mask8(const uint32_t* weight, unsigned bits, uint32_t* masked) {
    const __m256i select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i gate = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), select), select);
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(masked), _mm256_and_si256(values, gate));
}

inline void mask8(const uint64_t* weight, unsigned bits, uint64_t* masked) {
    const __m256i selects[2] = {_mm256_setr_epi64x(1, 2, 4, 8), _mm256_setr_epi64x(16, 32, 64, 128)};
    for (int half = 0; half < 2; ++half) {
        const __m256i word = _mm256_and_si256(_mm256_set1_epi64x(bits), selects[half]);
        const __m256i gate = _mm256_cmpeq_epi64(word, selects[half]);
        const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + 4 * half));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(masked + 4 * half), _mm256_and_si256(values, gate));
    }
}
#endif

template <class U>
void mask_some(const U* weight, const uint8_t* packed, int64_t count, U* masked) {
    const int64_t whole = count / 8;
    for (int64_t i = 0; i < whole; ++i) mask8(weight + 8 * i, packed[i], masked + 8 * i);
    if (count % 8 != 0) mask_each(weight + 8 * whole, packed[whole], count % 8, masked + 8 * whole);
}

// Call use with a 0 of the integer type of this width.
template <class Use>
void with_width(int width, const Use& use) {
    if (width == 2)
        use(uint16_t{0});
    else if (width == 4)
        use(uint32_t{0});
    else
        use(uint64_t{0});
}

void mask_by_bits(const void* weight, void* masked, int width, const uint8_t* packed, int64_t rows, int64_t columns,
                  int threads) {
    with_width(width, [&](auto zero) {
        using U = decltype(zero);
        const U* from = static_cast<const U*>(weight);
        U* to = static_cast<U*>(masked);
        Blocks(rows, columns).share_out(threads, [&](int64_t element, int64_t byte, int64_t size) {
            mask_some(from + element, packed + byte, size, to + element);
        });
    });
}

void mask_by_scores(const void* weight, void* masked, int width, Numbers scores, double threshold, uint8_t* packed,
                    int64_t rows, int64_t columns, int threads) {
    with_scores(scores.kind, threshold, [&](const auto& compared) {
        using Element = typename std::remove_reference_t<decltype(compared)>::Element;
        const Element* scored = static_cast<const Element*>(scores.data);
        with_width(width, [&](auto zero) {
            using U = decltype(zero);
            const U* from = static_cast<const U*>(weight);
            U* to = static_cast<U*>(masked);
            Blocks(rows, columns).share_out(threads, [&](int64_t element, int64_t byte, int64_t size) {
                uint8_t unwanted[block / 8];
                uint8_t* bits = packed != nullptr ? packed + byte : unwanted;
                pack_some(compared, scored + element, size, bits);
                mask_some(from + element, bits, size, to + element);
            });
        });
    });
}

template <class T>
void scores_grad_of(Numbers product, Numbers weight, Numbers importance, float* grad, int64_t count, int threads) {
    const T* products = static_cast<const T*>(product.data);
    Blocks(1, count).share_out(threads, [&](int64_t at, int64_t, int64_t size) {
        T weight_buffer[block], importance_buffer[block];
        const T* weights = values_of(weight, at, size, weight_buffer);
        if (importance.data == nullptr) {
            for (int64_t i = 0; i < size; ++i) grad[at + i] = static_cast<float>(products[at + i] * weights[i]);
            return;
        }
        const T* importances = values_of(importance, at, size, importance_buffer);
        for (int64_t i = 0; i < size; ++i)
            grad[at + i] = static_cast<float>(products[at + i] * weights[i] * (T(1) - importances[i]));
    });
}

void scores_grad(Numbers product, Numbers weight, Numbers importance, float* grad, int64_t count, int threads) {
    if (product.kind == Kind::float64)
        scores_grad_of<double>(product, weight, importance, grad, count, threads);
    else
        scores_grad_of<float>(product, weight, importance, grad, count, threads);
}

}  // namespace
}  // namespace tss::TSS_ISA
