// How a tensor core adds a sum and the sixteen products of one instruction. The manual does not say how it rounds; as
// found on Hopper, nothing is rounded: all terms are truncated at a bit position relative to the largest one, keeping
// two bits more than float32 has, added exactly, and the result is truncated to float32. The errors of a long sum all
// pull it towards 0, so that they grow with its length, not with the square root of its length.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tss::emulator {

constexpr int products_of_one = 16, float32_bits = 24, further_bits = 2;

inline float cut_sum(float sum, const float (&products)[products_of_one]) {
    float largest = std::fabs(sum), all = sum;
    for (const float product : products) {
        largest = std::max(largest, std::fabs(product));
        all += product;
    }
    if (largest == 0.0f || !std::isfinite(all)) return all;
    int exponent;
    std::frexp(largest, &exponent);  // the largest is below 2^exponent
    const int last = exponent - float32_bits - further_bits;
    const auto cut = [last](float term) { return static_cast<std::int64_t>(std::ldexp(double(term), -last)); };
    std::int64_t total = cut(sum);
    for (const float product : products) total += cut(product);
    std::int64_t size = total < 0 ? -total : total, unit = 1;
    while (size / unit >= std::int64_t(1) << float32_bits) unit *= 2;
    return static_cast<float>(std::ldexp(double(total / unit * unit), last));
}

}  // namespace tss::emulator
