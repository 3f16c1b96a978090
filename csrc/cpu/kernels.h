// What a set of kernels offers: one table of functions for each instruction set, chosen when the module is loaded.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace tss {

using Kind = Dtype;  // how numbers lie in memory

struct Numbers {
    void* data;  // nullptr where there are none
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

// y <- x (W * g)ᵀ + bias, or, backward, y <- x (W * g), each entry by the gates of its task: `length` rows of x and y.
// Rows of x begin `x_stride` elements apart; gates of a task are packed, `task_stride` bytes after those of the one before.
struct MultiTaskProduct {
    Numbers x, weight, bias, y;  // of one kind
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
    // `update` the maximum of that and target, which may then have any kind
    void (*importance)(Numbers raw, Numbers target, bool update, int64_t groups, int64_t size, int threads);
    // total <- max(total, other), NaN where either is; both of one kind
    void (*accumulate)(void* total, const void* other, Kind kind, int64_t count, int threads);
    // order: the entries by task, as `order_by_task` gives them
    void (*multi_task_product)(const MultiTaskProduct& product, const int64_t* order, int threads);
    // to <- activation(from), both of one kind; no bit depends on where an element lies
    void (*activate)(Numbers from, Numbers to, Activation activation, int64_t count, int threads);
};

// The kernels in use, at first the fastest that the processor can run.
const Kernels& kernels();

// The names of those that it can run, the fastest first, and a switch to one of them; false if it cannot run that.
const Kernels* const* available_kernels(int* count);
bool use_kernels(const char* name);

}  // namespace tss
