// Soft-masked AdamW of many tensors in one launch: what describes them travels in the kernel's argument.
#pragma once

#include "cuda/device.cuh"

namespace tss {

constexpr int adamw_threads = 256, adamw_share = 4;  // elements of a thread: 16 bytes
constexpr int adamw_block = adamw_threads * adamw_share;
constexpr int gates_in_byte = 8;

// One parameter's contiguous tensors. Gates are wanted where `packed` is set, of a matrix (rows, columns); its rows count
// as if they were filled up to whole bytes.
struct AdamwTensor {
    void* param;
    const void* grad;
    void* exp_avg;
    void* exp_avg_sq;
    const void* importance;
    std::uint8_t* packed;
    unsigned long long* flips;
    std::int64_t size;  // filled up
    int first_block;
    int columns;  // of a matrix whose rows end within a byte, else 0
    float threshold;
    unsigned kinds : 20;  // four bits for each tensor's type, the parameter's lowest
    unsigned number : 12;  // in the list of all, from the launch's first on: by which `steps` are found
};

// What the step's number and learning rate make: the same for all tensors, or one set for each on the device.
struct AdamwStep {
    float decay, step_size, root_correction;
};

template <int capacity>
struct AdamwArguments {
    AdamwTensor tensors[capacity];
    int count;
    float take1, beta2, take2, eps;
    AdamwStep step;
    const AdamwStep* steps;
    bool update_site, has_decay;
};

__device__ __forceinline__ float load_number(const void* data, int kind, std::int64_t at) {
    switch (static_cast<Dtype>(kind & 15)) {
        case Dtype::float16: return to_float(static_cast<const float16*>(data)[at]);
        case Dtype::bfloat16: return to_float(static_cast<const bfloat16*>(data)[at]);
        case Dtype::float64: return static_cast<float>(static_cast<const double*>(data)[at]);
        default: return static_cast<const float*>(data)[at];
    }
}

__device__ __forceinline__ void store_number(void* data, int kind, std::int64_t at, float value) {
    switch (static_cast<Dtype>(kind & 15)) {
        case Dtype::float16: static_cast<float16*>(data)[at] = to_float16(value); break;
        case Dtype::bfloat16: static_cast<bfloat16*>(data)[at] = to_bfloat16(value); break;
        case Dtype::float64: static_cast<double*>(data)[at] = value; break;
        default: static_cast<float*>(data)[at] = value;
    }
}

// Four elements of each tensor, as far as they are there.
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

// The tensor that a block works on: the last that starts at or before it.
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

// Writes a byte of gates for every two threads and counts what changed; all threads of a warp come here together.
__device__ __forceinline__ void emit_gates(const AdamwTensor& tensor, std::int64_t start, unsigned before, unsigned after) {
    const unsigned neighbour = __shfl_xor_sync(whole_warp, after, 1);
    const bool even = threadIdx.x % 2 == 0;
    if (even && start < tensor.size) tensor.packed[start / gates_in_byte] = static_cast<std::uint8_t>(after | neighbour << adamw_share);
    int changed = __popc(before ^ after);
#pragma unroll
    for (int lanes = warp_size / 2; lanes > 0; lanes /= 2) changed += __shfl_xor_sync(whole_warp, changed, lanes);
    // Integers have one sum in any order: the result is the same in every run.
    if (threadIdx.x % warp_size == 0 && changed != 0 && tensor.flips != nullptr) {
        atomicAdd(tensor.flips, static_cast<unsigned long long>(changed));
    }
}

// kFloat32: every tensor is float32, and whole shares on boundaries of 16 bytes move at once.
template <int capacity, bool kFloat32>
__global__ void __launch_bounds__(adamw_threads) adamw_kernel(const __grid_constant__ AdamwArguments<capacity> arguments) {
    const int index = tensor_of(arguments, static_cast<int>(blockIdx.x));
    const AdamwTensor& tensor = arguments.tensors[index];
    const AdamwStep step = arguments.steps == nullptr ? arguments.step : arguments.steps[tensor.number];
    const std::int64_t start = std::int64_t(static_cast<int>(blockIdx.x) - tensor.first_block) * adamw_block + threadIdx.x * adamw_share;
    const bool masked = tensor.importance != nullptr;
    // Where the share lies: filled-up rows have gaps at their ends.
    const std::int64_t filled = tensor.columns == 0 ? 1 : (tensor.columns + gates_in_byte - 1) / gates_in_byte * gates_in_byte;
    const std::int64_t row = tensor.columns == 0 ? 0 : start / filled, column = start - row * filled;
    const std::int64_t at = tensor.columns == 0 ? start : row * tensor.columns + column;
    const std::int64_t left = tensor.columns == 0 || start >= tensor.size ? tensor.size - start : tensor.columns - column;
    const int valid = static_cast<int>(left < 0 ? 0 : left < adamw_share ? left : adamw_share);
    const auto addresses = reinterpret_cast<std::uintptr_t>(tensor.param) | reinterpret_cast<std::uintptr_t>(tensor.grad) |
                           reinterpret_cast<std::uintptr_t>(tensor.exp_avg) | reinterpret_cast<std::uintptr_t>(tensor.exp_avg_sq) |
                           reinterpret_cast<std::uintptr_t>(tensor.importance);
    const bool wide = kFloat32 && valid == adamw_share && at % adamw_share == 0 && addresses % 16 == 0;
    AdamwShare share;
    unsigned before = 0, after = 0;
    if (wide) {
        load_four(tensor.param, at, share.param);
        load_four(tensor.grad, at, share.grad);
        load_four(tensor.exp_avg, at, share.exp_avg);
        load_four(tensor.exp_avg_sq, at, share.exp_avg_sq);
        if (masked) load_four(tensor.importance, at, share.importance);
#pragma unroll
        for (int i = 0; i < adamw_share; ++i) {
            before |= unsigned(share.param[i] >= tensor.threshold) << i;
            advance(share, i, arguments, step, masked);
            after |= unsigned(share.param[i] >= tensor.threshold) << i;
        }
        store_four(tensor.param, at, share.param);
        store_four(tensor.exp_avg, at, share.exp_avg);
        store_four(tensor.exp_avg_sq, at, share.exp_avg_sq);
    } else {
        const int kinds = kFloat32 ? 0 : static_cast<int>(tensor.kinds);
#pragma unroll
        for (int i = 0; i < adamw_share; ++i) {
            if (i >= valid) continue;
            share.param[i] = load_number(tensor.param, kinds, at + i);
            share.grad[i] = load_number(tensor.grad, kinds >> 4, at + i);
            share.exp_avg[i] = load_number(tensor.exp_avg, kinds >> 8, at + i);
            share.exp_avg_sq[i] = load_number(tensor.exp_avg_sq, kinds >> 12, at + i);
            if (masked) share.importance[i] = load_number(tensor.importance, kinds >> 16, at + i);
            before |= unsigned(share.param[i] >= tensor.threshold) << i;
            advance(share, i, arguments, step, masked);
            after |= unsigned(share.param[i] >= tensor.threshold) << i;
            store_number(tensor.param, kinds, at + i, share.param[i]);
            store_number(tensor.exp_avg, kinds >> 8, at + i, share.exp_avg[i]);
            store_number(tensor.exp_avg_sq, kinds >> 12, at + i, share.exp_avg_sq[i]);
        }
    }
    if (tensor.packed != nullptr) emit_gates(tensor, start, before, after);
}

}  // namespace tss
