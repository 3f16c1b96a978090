// The adapter's activations in float32: value and gradient. NaN stays NaN in all of them.
#pragma once

#include "cuda/device.cuh"
#include "cuda/operations.h"

namespace tss {

// keeps_result: the gradient is computed from the activation's result, which is then kept; else from its argument.
struct Relu {
    static constexpr bool keeps_result = true;
    __device__ static float value(float x) { return x <= 0.0f ? 0.0f : x; }
    __device__ static float gradient(float grad, float kept) { return kept <= 0.0f ? 0.0f : grad; }
};

struct Gelu {
    static constexpr bool keeps_result = false;
    __device__ static float value(float x) { return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f)); }
    __device__ static float gradient(float grad, float kept) {
        const float density = 0.3989422804014327f * expf(-0.5f * kept * kept);
        return grad * (0.5f * (1.0f + erff(kept * 0.7071067811865476f)) + kept * density);
    }
};

struct Silu {
    static constexpr bool keeps_result = false;
    __device__ static float value(float x) { return x / (1.0f + expf(-x)); }
    __device__ static float gradient(float grad, float kept) {
        const float sigmoid = 1.0f / (1.0f + expf(-kept));
        return grad * (sigmoid * (1.0f + kept * (1.0f - sigmoid)));
    }
};

struct Tanh {
    static constexpr bool keeps_result = true;
    __device__ static float value(float x) { return tanhf(x); }
    __device__ static float gradient(float grad, float kept) { return grad * (1.0f - kept * kept); }
};

// Call use with the activation of this number.
template <class Use>
__device__ __forceinline__ void with_activation(Activation activation, Use use) {
    switch (activation) {
        case Activation::relu: return use(Relu());
        case Activation::gelu: return use(Gelu());
        case Activation::silu: return use(Silu());
        case Activation::tanh: return use(Tanh());
    }
}

}  // namespace tss
