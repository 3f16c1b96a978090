// The activation between the two products of an adapter, element by element: for some functions, PyTorch's result
// depends on the position of an element in memory. Included once for each instruction set.
#pragma once

#include <cmath>

#include "blocks.h"
#include "importance.h"

namespace tss::TSS_ISA {
namespace {

// exp(power) to ten digits, 0 where that is below 1e-307. Only arithmetic, so that vectorized code gives the same bits
// as scalar code.
inline double exp_of(double power) {
    const double most = power > 709.7 ? 709.7 : power, held = most < -707 ? -707 : most;  // NaN stays
    const double shifter = 0x1.8p52, shifted = held * 0x1.71547652b82fep0 + shifter, n = shifted - shifter;
    const double r = held - n * 0x1.62e42fefa39efp-1;
    const double series =
        1 + r * (1 + r * (1.0 / 2 + r * (1.0 / 6 + r * (1.0 / 24 + r * (1.0 / 120 + r * (1.0 / 720 + r * (1.0 / 5040 +
        r * (1.0 / 40320 + r * (1.0 / 362880)))))))));
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return power < -707 ? 0 : scale * series;
}

// erfc of z to 1.2e-7 of its value: a Chebyshev fit (Press et al., Numerical Recipes, section 6.2).
inline double erfc_of(double z) {
    const double size = __builtin_fabs(z), t = 1 / (1 + 0.5 * size);
    const double series =
        -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807 +
        t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    const double found = t * exp_of(series - size * size);
    return z < 0 ? 2 - found : found;
}

constexpr double root_half = 0.70710678118654752440;

// Results in float32 or narrower types are computed in float64 by the functions above and rounded; float64 results are
// computed by the C library.
struct Relu {
    template <class T>
    static T of(T x) { return x < 0 ? 0 : x; }  // NaN stays
};
struct Gelu {
    static float of(float x) { return static_cast<float>(0.5 * x * erfc_of(-root_half * x)); }
    static double of(double x) { return 0.5 * x * std::erfc(-root_half * x); }
};
struct Silu {
    static float of(float x) { return static_cast<float>(x / (1 + exp_of(-static_cast<double>(x)))); }
    static double of(double x) { return x / (1 + std::exp(-x)); }
};
struct Tanh {
    static float of(float x) {
        const double size = abs_tanh(x);
        return static_cast<float>(x < 0 ? -size : size);
    }
    static double of(double x) { return std::tanh(x); }
};

template <class Function, class T>
void activate_by(Numbers from, Numbers to, int64_t count, int threads) {
    Blocks(1, count).share_out(threads, [&](int64_t at, int64_t, int64_t size) {
        T values[block];
        read(from, at, size, values);
        for (int64_t i = 0; i < size; ++i) values[i] = Function::of(values[i]);
        write(values, size, to, at);
    });
}

template <class Function>
void activate_of(Numbers from, Numbers to, int64_t count, int threads) {
    if (from.kind == Kind::float64)
        activate_by<Function, double>(from, to, count, threads);
    else
        activate_by<Function, float>(from, to, count, threads);
}

void activate(Numbers from, Numbers to, Activation activation, int64_t count, int threads) {
    switch (activation) {
        case Activation::relu: return activate_of<Relu>(from, to, count, threads);
        case Activation::gelu: return activate_of<Gelu>(from, to, count, threads);
        case Activation::silu: return activate_of<Silu>(from, to, count, threads);
        case Activation::tanh: return activate_of<Tanh>(from, to, count, threads);
    }
}

}  // namespace
}  // namespace tss::TSS_ISA
