// The two 16-bit floating types as bits, for compilers that have neither, and their exact conversions.
#pragma once

#include <cstdint>
#include <cstring>

namespace tss {

struct bfloat16 { std::uint16_t bits; };
struct float16 { std::uint16_t bits; };

inline float float_of_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t bits_of_float(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float to_float(bfloat16 value) { return float_of_bits(std::uint32_t(value.bits) << 16); }

// Rounded to nearest even; a NaN stays one.
inline bfloat16 to_bfloat16(float value) {
    const std::uint32_t bits = bits_of_float(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {std::uint16_t((bits >> 16) | 0x40u)};
    return {std::uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

inline float to_float(float16 value) {
    const std::uint32_t sign = std::uint32_t(value.bits & 0x8000u) << 16, rest = value.bits & 0x7FFFu;
    if (rest >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
    if (rest >= 0x0400u) return float_of_bits(sign | ((rest << 13) + (112u << 23)));
    const float size = float(rest) * float_of_bits(103u << 23);  // subnormals count in steps of 2^-24
    return sign != 0 ? -size : size;
}

// Rounded to nearest even; a NaN stays one.
inline float16 to_float16(float value) {
    const std::uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return {std::uint16_t(sign | 0x7E00u | (size >> 13 & 0x3FFu))};
    if (size >= 0x477FF000u) return {std::uint16_t(sign | 0x7C00u)};  // 65,520 and more
    if (size < 0x38800000u) {  // below 2^-14: adding a half moves the last bit that is kept to the end of the fraction
        return {std::uint16_t(sign | (bits_of_float(float_of_bits(size) + 0.5f) - 0x3F000000u))};
    }
    return {std::uint16_t(sign | ((size - (112u << 23) + 0xFFFu + (size >> 13 & 1u)) >> 13))};
}

}  // namespace tss
