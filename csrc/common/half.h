// The two 16-bit floating-point types as bits, and their conversions. Each instruction set compiles its own copies:
// always inlined, so that no copy for one set can be linked into code for another.
#pragma once

#include <cstdint>
#include <cstring>

#define TSS_INLINED inline __attribute__((always_inline))

namespace tss {

TSS_INLINED std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

TSS_INLINED float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Selections rather than branches, since compilers vectorize selections.
TSS_INLINED float from_half(std::uint16_t half) {
    const std::uint32_t size = half & 0x7fffu, sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    std::uint32_t bits = (size << 13) + (112u << 23);
    if (size >= 0x7c00u) bits += 112u << 23;
    if (size > 0x7c00u) bits |= 0x400000u;
    if (size < 0x400u) bits = bits_of(static_cast<float>(static_cast<std::int32_t>(size)) * 0x1p-24f);
    return float_of(bits | sign);
}

// Rounded to nearest, ties to even.
TSS_INLINED std::uint16_t to_half(float value) {
    const std::uint32_t bits = bits_of(value), size = bits & 0x7fffffffu;
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    std::uint32_t half = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
    // Below the normal range a sum with 0.5 moves the bits into place and rounds them.
    if (size < 113u << 23) half = bits_of(float_of(size) + 0.5f) - 0x3f000000u;
    if (size >= 143u << 23) half = 0x7c00u;
    if (size > 0x7f800000u) half = 0x7e00u | ((size >> 13) & 0x3ffu);
    return static_cast<std::uint16_t>(half | sign);
}

TSS_INLINED float from_bfloat(std::uint16_t bfloat) { return float_of(static_cast<std::uint32_t>(bfloat) << 16); }

TSS_INLINED std::uint16_t to_bfloat(float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The same as types, for compilers that have neither of them.
struct bfloat16 { std::uint16_t bits; };
struct float16 { std::uint16_t bits; };

TSS_INLINED float to_float(bfloat16 value) { return from_bfloat(value.bits); }
TSS_INLINED float to_float(float16 value) { return from_half(value.bits); }
TSS_INLINED bfloat16 to_bfloat16(float value) { return {to_bfloat(value)}; }
TSS_INLINED float16 to_float16(float value) { return {to_half(value)}; }

}  // namespace tss
