// Gates as bits: comparing, packing, unpacking. Included once for each instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "blocks.h"

namespace tss::TSS_ISA {
namespace {

// Scores of each dtype are compared with their bound as PyTorch does it: in their own precision, false for NaN. `on`
// compares one score; `pack8` compares eight, the first becoming the lowest bit.
template <class T>
uint8_t pack_each(const T& scores, const typename T::Element* from, int64_t count) {
    unsigned bits = 0;
    for (int64_t i = 0; i < count; ++i) bits |= static_cast<unsigned>(scores.on(from[i])) << i;
    return static_cast<uint8_t>(bits);
}

struct Float32Scores {
    using Element = float;
    float bound;

    explicit Float32Scores(double threshold) : bound(static_cast<float>(threshold)) {}
    bool on(float score) const { return score >= bound; }
    uint8_t pack8(const float* from) const {
#if defined(__AVX2__)
        const __m256 gate = _mm256_cmp_ps(_mm256_loadu_ps(from), _mm256_set1_ps(bound), _CMP_GE_OQ);
        return static_cast<uint8_t>(_mm256_movemask_ps(gate));
#else
        return pack_each(*this, from, 8);
#endif
    }
};

struct Float64Scores {
    using Element = double;
    double bound;

    explicit Float64Scores(double threshold) : bound(threshold) {}
    bool on(double score) const { return score >= bound; }
    uint8_t pack8(const double* from) const {
#if defined(__AVX2__)
        const __m256d low = _mm256_cmp_pd(_mm256_loadu_pd(from), _mm256_set1_pd(bound), _CMP_GE_OQ);
        const __m256d high = _mm256_cmp_pd(_mm256_loadu_pd(from + 4), _mm256_set1_pd(bound), _CMP_GE_OQ);
        return static_cast<uint8_t>(_mm256_movemask_pd(low) | _mm256_movemask_pd(high) << 4);
#else
        return pack_each(*this, from, 8);
#endif
    }
};

// 16-bit scores are compared as integers that have the order of the numbers; both zeros are 0.
struct NarrowScores {
    using Element = uint16_t;
    int16_t largest;  // bits of infinity: larger ones are NaN
    int16_t bound;

    NarrowScores(Kind kind, double threshold) {
        const float wide = static_cast<float>(threshold);
        const uint16_t bits = kind == Kind::float16 ? to_half(wide) : to_bfloat(wide);
        largest = kind == Kind::float16 ? 0x7c00 : 0x7f80;
        bound = (bits & 0x7fff) > largest ? 0x7fff : rank(bits);
    }

    static int16_t rank(uint16_t bits) {
        const int size = bits & 0x7fff;
        return static_cast<int16_t>(bits & 0x8000 ? -size : size);
    }
    bool on(uint16_t bits) const { return (bits & 0x7fff) <= largest && rank(bits) >= bound; }
    uint8_t pack8(const uint16_t* from) const {
#if defined(__AVX2__)
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        const __m128i size = _mm_and_si128(bits, _mm_set1_epi16(0x7fff)), negative = _mm_srai_epi16(bits, 15);
        const __m128i ranks = _mm_sub_epi16(_mm_xor_si128(size, negative), negative);
        const __m128i off = _mm_or_si128(_mm_cmpgt_epi16(size, _mm_set1_epi16(largest)),
                                         _mm_cmpgt_epi16(_mm_set1_epi16(bound), ranks));
        return static_cast<uint8_t>(~_mm_movemask_epi8(_mm_packs_epi16(off, off)));
#else
        return pack_each(*this, from, 8);
#endif
    }
};

// Pack `count` scores as bits, the last byte padded with 0.
template <class T>
void pack_some(const T& scores, const typename T::Element* from, int64_t count, uint8_t* packed) {
    const int64_t whole = count / 8;
    for (int64_t i = 0; i < whole; ++i) packed[i] = scores.pack8(from + 8 * i);
    if (count % 8 != 0) packed[whole] = pack_each(scores, from + 8 * whole, count % 8);
}

// Call use(scores) with the comparison for this dtype.
template <class Use>
void with_scores(Kind kind, double threshold, const Use& use) {
    if (kind == Kind::float32)
        use(Float32Scores(threshold));
    else if (kind == Kind::float64)
        use(Float64Scores(threshold));
    else
        use(NarrowScores(kind, threshold));
}

void pack(Numbers scores, double threshold, uint8_t* packed, int64_t rows, int64_t columns, int threads) {
    with_scores(scores.kind, threshold, [&](const auto& compared) {
        using Element = typename std::remove_reference_t<decltype(compared)>::Element;
        const Element* from = static_cast<const Element*>(scores.data);
        Blocks(rows, columns).share_out(threads, [&](int64_t element, int64_t byte, int64_t size) {
            pack_some(compared, from + element, size, packed + byte);
        });
    });
}

// Lookup table of the eight gates of every byte value, one byte per gate.
struct Spread {
    uint8_t gates[256][8];

    constexpr Spread() : gates() {
        for (int byte = 0; byte < 256; ++byte)
            for (int bit = 0; bit < 8; ++bit) gates[byte][bit] = static_cast<uint8_t>(byte >> bit & 1);
    }
};

constexpr Spread spread;

void unpack(const uint8_t* packed, uint8_t* gate, int64_t rows, int64_t columns, int threads) {
    Blocks(rows, columns).share_out(threads, [&](int64_t element, int64_t byte, int64_t size) {
        const uint8_t* from = packed + byte;
        uint8_t* to = gate + element;
        for (int64_t i = 0; i < size / 8; ++i) std::memcpy(to + 8 * i, spread.gates[from[i]], 8);
        for (int64_t i = size / 8 * 8; i < size; ++i) to[i] = spread.gates[from[i / 8]][i % 8];
    });
}

}  // namespace
}  // namespace tss::TSS_ISA
