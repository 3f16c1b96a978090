// Interface of a set of kernels: one table of functions for each instruction set, chosen when the module is loaded.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace tss {

using Kind = Dtype;  // the type of numbers in memory

struct Numbers {
    void* data;  // nullptr for no tensor
    Kind kind;
};

// One parameter of an AdamW step; its tensors are contiguous and have `size` elements.
struct AdamWEntry {
    Numbers param, grad, exp_avg, exp_avg_sq, importance;
    int64_t size;
};

struct AdamWStep {
    double decay, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction, eps;
    bool update_site, decays;
};

// y <- x (W * g)ᵀ + bias, or, with `backward`, y <- x (W * g). Each entry is `length` rows of x and y and uses the
// gates of its task. Rows of x start `x_stride` elements apart, packed gates of consecutive tasks `task_stride` bytes.
struct MultiTaskProduct {
    Numbers x, weight, bias, y;  // of one dtype
    const uint8_t* bank;
    const int64_t* task_ids;
    int64_t x_stride, task_stride, entries, length, out_features, in_features;
    bool backward;
};

enum class Activation : int { relu = 0, gelu = 1, silu = 2, tanh = 3 };

// Matrices are contiguous, (rows, columns); packed gates (rows, ceil(columns / 8)), bit i of byte j is column 8 j + i.
// No result depends on the number of threads.
struct Kernels {
    const char* name;
    // packed <- scores >= threshold, compared in the scores' own precision
    void (*pack)(Numbers scores, double threshold, uint8_t* packed, int64_t rows, int64_t columns, int threads);
    // gate <- 0 or 1 for each bit
    void (*unpack)(const uint8_t* packed, uint8_t* gate, int64_t rows, int64_t columns, int threads);
    // masked <- where(scores >= threshold, weight, 0), and packed, if it is not nullptr, as by `pack`; width: bytes of an
    // element of weight
    void (*mask_by_scores)(const void* weight, void* masked, int width, Numbers scores, double threshold,
                           uint8_t* packed, int64_t rows, int64_t columns, int threads);
    // masked <- where(bit, weight, 0)
    void (*mask_by_bits)(const void* weight, void* masked, int width, const uint8_t* packed, int64_t rows,
                         int64_t columns, int threads);
    // grad <- product * weight * (1 - importance), computed in the product's precision; grad may be the product
    void (*scores_grad)(Numbers product, Numbers weight, Numbers importance, float* grad, int64_t count, int threads);
    void (*adamw)(const AdamWEntry* entries, int64_t count, const AdamWStep& step, int threads);
    // target <- |tanh((raw - mean) / (deviation + 1e-6))| of each of `groups` groups of `size` elements, float32; with
    // `update` the maximum of that and target, which may then have any dtype
    void (*importance)(Numbers raw, Numbers target, bool update, int64_t groups, int64_t size, int threads);
    // total <- max(total, other), NaN where either is; both of one dtype
    void (*accumulate)(void* total, const void* other, Kind kind, int64_t count, int threads);
    // order: the entries by task, as `order_by_task` gives them
    void (*multi_task_product)(const MultiTaskProduct& product, const int64_t* order, int threads);
    // to <- activation(from), both of one dtype; no bit depends on the position of an element in memory
    void (*activate)(Numbers from, Numbers to, Activation activation, int64_t count, int threads);
};

// Return the kernels in use, initially the fastest that the processor can run.
const Kernels& kernels();

// available_kernels returns the sets that the processor can run, fastest first; use_kernels switches to one of them by
// name and returns false if the processor cannot run it.
const Kernels* const* available_kernels(int* count);
bool use_kernels(const char* name);

}  // namespace tss
