// Soft-masked AdamW of many tensors in one launch: their description is part of the kernel's argument.
#pragma once

#include "cuda/device.cuh"

namespace tss {

constexpr int adamw_threads = 256, adamw_share = 4;  // elements of a thread: 16 bytes
constexpr int adamw_block = adamw_threads * adamw_share;

// One parameter's contiguous tensors of `size` elements.
struct AdamwTensor {
    void* param;
    const void* grad;
    void* exp_avg;
    void* exp_avg_sq;
    const void* importance;
    const void* step;  // address of the number of this step, if the device reads it
    std::int64_t size;
    int first_block;
    unsigned kinds;  // four bits for each tensor's type, the parameter's lowest, and above them the step's
};

// Values that follow from the step number and the learning rate.
struct AdamwStep {
    float decay, step_size, root_correction;
};

constexpr unsigned int64_kind = 4;  // type number of int64, after those of Dtype
constexpr unsigned tensor_kinds = 0xFFFFFu;

template <int capacity>
struct AdamwArguments {
    AdamwTensor tensors[capacity];
    int count;
    float take1, beta2, take2, eps;
    AdamwStep step;  // if the host computes it
    bool update_site, has_decay;
    // Else the values of each tensor's own step, and what they are computed from: the learning rate with its type, and
    // logarithms to base 2.
    AdamwStep* steps;
    unsigned lr_kind;
    const void* lr;
    double log_beta1, log_beta2, weight_decay;
};

__device__ __forceinline__ float load_number(const void* data, unsigned kind, std::int64_t at) {
    switch (static_cast<Dtype>(kind & 15)) {
        case Dtype::float16: return to_float(static_cast<const float16*>(data)[at]);
        case Dtype::bfloat16: return to_float(static_cast<const bfloat16*>(data)[at]);
        case Dtype::float64: return static_cast<float>(static_cast<const double*>(data)[at]);
        default: return static_cast<const float*>(data)[at];
    }
}

__device__ __forceinline__ void store_number(void* data, unsigned kind, std::int64_t at, float value) {
    switch (static_cast<Dtype>(kind & 15)) {
        case Dtype::float16: static_cast<float16*>(data)[at] = to_float16(value); break;
        case Dtype::bfloat16: static_cast<bfloat16*>(data)[at] = to_bfloat16(value); break;
        case Dtype::float64: static_cast<double*>(data)[at] = value; break;
        default: static_cast<float*>(data)[at] = value;
    }
}

// Four elements of each tensor, fewer at its end.
struct AdamwShare {
    float param[adamw_share], grad[adamw_share], exp_avg[adamw_share], exp_avg_sq[adamw_share], importance[adamw_share];
};

__device__ __forceinline__ void load_four(const void* data, std::int64_t at, float (&values)[adamw_share]) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
}

__device__ __forceinline__ void store_four(void* data, std::int64_t at, const float (&values)[adamw_share]) {
    store_16(static_cast<float*>(data) + at, uint4{__float_as_uint(values[0]), __float_as_uint(values[1]),
                                                  __float_as_uint(values[2]), __float_as_uint(values[3])});
}

// The reference's formula with its roundings: this file is compiled without contraction to fused multiply-adds.
template <class Arguments>
__device__ __forceinline__ void advance(AdamwShare& share, int i, const Arguments& arguments, const AdamwStep& step, bool masked) {
    const float keep = masked ? 1.0f - share.importance[i] : 1.0f;
    const float before = share.param[i];
    float grad = share.grad[i];
    if (masked && !arguments.update_site) grad *= keep;
    share.exp_avg[i] += arguments.take1 * (grad - share.exp_avg[i]);
    share.exp_avg_sq[i] = arguments.beta2 * share.exp_avg_sq[i] + arguments.take2 * grad * grad;
    float change = __fdiv_rn(step.step_size * share.exp_avg[i],
                             __fdiv_rn(__fsqrt_rn(share.exp_avg_sq[i]), step.root_correction) + arguments.eps);
    if (arguments.has_decay) change += step.decay * before;
    if (masked && arguments.update_site) change *= keep;
    share.param[i] = before - change;
}

// Return the tensor that a block works on: the last one that starts at or before it.
template <class Arguments>
__device__ __forceinline__ int tensor_of(const Arguments& arguments, int block) {
    int low = 0, high = arguments.count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (arguments.tensors[middle].first_block <= block) low = middle;
        else high = middle - 1;
    }
    return low;
}

__device__ __forceinline__ double load_scalar(const void* data, unsigned kind) {
    switch (kind & 15) {
        case int64_kind: return static_cast<double>(*static_cast<const std::int64_t*>(data));
        case static_cast<unsigned>(Dtype::float64): return *static_cast<const double*>(data);
        default: return *static_cast<const float*>(data);
    }
}

// Compute what PyTorch computes on the host, in float64 too: one thread for each tensor, in a launch before the step's
// own, whose blocks would otherwise each wait for the powers.
template <int capacity>
__global__ void __launch_bounds__(warp_size) adamw_steps_kernel(const __grid_constant__ AdamwArguments<capacity> arguments) {
    const int index = static_cast<int>(blockIdx.x * warp_size + threadIdx.x);
    if (index >= arguments.count) return;
    const AdamwTensor& tensor = arguments.tensors[index];
    const double number = load_scalar(tensor.step, tensor.kinds >> 20);
    const double rate = load_scalar(arguments.lr, arguments.lr_kind);
    AdamwStep step;
    step.decay = static_cast<float>(rate * arguments.weight_decay);
    step.step_size = static_cast<float>(rate / (1.0 - exp2(number * arguments.log_beta1)));
    step.root_correction = static_cast<float>(sqrt(1.0 - exp2(number * arguments.log_beta2)));
    arguments.steps[index] = step;
}

// The position of a thread's share in a tensor.
struct AdamwPlace {
    std::int64_t at;
    int valid;  // elements that exist
    bool wide;  // all four exist, aligned to 16 bytes
};

template <bool kFloat32>
__device__ __forceinline__ AdamwPlace place_of(const AdamwTensor& tensor, int block) {
    AdamwPlace place;
    place.at = std::int64_t(block) * adamw_block + threadIdx.x * adamw_share;
    const std::int64_t left = tensor.size - place.at;
    place.valid = static_cast<int>(left < 0 ? 0 : left < adamw_share ? left : adamw_share);
    const auto addresses = reinterpret_cast<std::uintptr_t>(tensor.param) | reinterpret_cast<std::uintptr_t>(tensor.grad) |
                           reinterpret_cast<std::uintptr_t>(tensor.exp_avg) | reinterpret_cast<std::uintptr_t>(tensor.exp_avg_sq) |
                           reinterpret_cast<std::uintptr_t>(tensor.importance);
    place.wide = kFloat32 && place.valid == adamw_share && addresses % 16 == 0;
    return place;
}

template <bool kFloat32>
__device__ __forceinline__ void load_share(AdamwShare& share, const AdamwTensor& tensor, const AdamwPlace& place) {
    const bool masked = tensor.importance != nullptr;
    if (place.wide) {
        load_four(tensor.param, place.at, share.param);
        load_four(tensor.grad, place.at, share.grad);
        load_four(tensor.exp_avg, place.at, share.exp_avg);
        load_four(tensor.exp_avg_sq, place.at, share.exp_avg_sq);
        if (masked) load_four(tensor.importance, place.at, share.importance);
        return;
    }
    const unsigned kinds = kFloat32 ? 0 : tensor.kinds;
#pragma unroll
    for (int i = 0; i < adamw_share; ++i) {
        if (i >= place.valid) continue;
        share.param[i] = load_number(tensor.param, kinds, place.at + i);
        share.grad[i] = load_number(tensor.grad, kinds >> 4, place.at + i);
        share.exp_avg[i] = load_number(tensor.exp_avg, kinds >> 8, place.at + i);
        share.exp_avg_sq[i] = load_number(tensor.exp_avg_sq, kinds >> 12, place.at + i);
        if (masked) share.importance[i] = load_number(tensor.importance, kinds >> 16, place.at + i);
    }
}

template <bool kFloat32>
__device__ __forceinline__ void store_share(const AdamwShare& share, const AdamwTensor& tensor, const AdamwPlace& place) {
    if (place.wide) {
        store_four(tensor.param, place.at, share.param);
        store_four(tensor.exp_avg, place.at, share.exp_avg);
        store_four(tensor.exp_avg_sq, place.at, share.exp_avg_sq);
        return;
    }
    const unsigned kinds = kFloat32 ? 0 : tensor.kinds;
#pragma unroll
    for (int i = 0; i < adamw_share; ++i) {
        if (i >= place.valid) continue;
        store_number(tensor.param, kinds, place.at + i, share.param[i]);
        store_number(tensor.exp_avg, kinds >> 8, place.at + i, share.exp_avg[i]);
        store_number(tensor.exp_avg_sq, kinds >> 12, place.at + i, share.exp_avg_sq[i]);
    }
}

// kFloat32: every tensor is float32, and whole shares aligned to 16 bytes move at once. kOnDevice: steps were computed
// on the device; deciding that at run time would cost both variants eight registers more.
template <int capacity, bool kOnDevice, bool kFloat32>
__global__ void __launch_bounds__(adamw_threads) adamw_kernel(const __grid_constant__ AdamwArguments<capacity> arguments) {
    const int index = tensor_of(arguments, static_cast<int>(blockIdx.x));
    const AdamwTensor& tensor = arguments.tensors[index];
    const AdamwPlace place = place_of<kFloat32>(tensor, static_cast<int>(blockIdx.x) - tensor.first_block);
    const bool masked = tensor.importance != nullptr;
    AdamwShare share;
    load_share<kFloat32>(share, tensor, place);
    const AdamwStep step = kOnDevice ? arguments.steps[index] : arguments.step;
#pragma unroll
    for (int i = 0; i < adamw_share; ++i) {
        if (i < place.valid) advance(share, i, arguments, step, masked);
    }
    store_share<kFloat32>(share, tensor, place);
}

}  // namespace tss
