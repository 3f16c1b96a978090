// Soft-masked AdamW: one pass over many tensors. Included once for each instruction set.
#pragma once

#include "blocks.h"

namespace tss::TSS_ISA {
namespace {

enum class Site { none, gradient, update };

// The values of `AdamWStep` in the precision of the step.
template <class T>
struct Factors {
    T decay, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction, eps;

    explicit Factors(const AdamWStep& step)
        : decay(static_cast<T>(step.decay)),
          one_minus_beta1(static_cast<T>(step.one_minus_beta1)),
          beta2(static_cast<T>(step.beta2)),
          one_minus_beta2(static_cast<T>(step.one_minus_beta2)),
          step_size(static_cast<T>(step.step_size)),
          root_correction(static_cast<T>(step.root_correction)),
          eps(static_cast<T>(step.eps)) {}
};

inline float root(float value) { return __builtin_sqrtf(value); }
inline double root(double value) { return __builtin_sqrt(value); }

// The same operations as the reference, one by one, so that results are bit-identical to it.
template <class T, Site site, bool decays>
void step_some(T* __restrict p, const T* __restrict grad, T* __restrict m, T* __restrict v,
               const T* __restrict importance, int64_t count, const Factors<T>& factors) {
    const Factors<T> f = factors;
    for (int64_t i = 0; i < count; ++i) {
        T g = grad[i];
        if constexpr (site == Site::gradient) g = g * (T(1) - importance[i]);
        const T mean = m[i] + f.one_minus_beta1 * (g - m[i]);
        const T square = f.beta2 * v[i] + f.one_minus_beta2 * g * g;
        T change = f.step_size * mean / (root(square) / f.root_correction + f.eps);
        if constexpr (decays) change = change + f.decay * p[i];
        if constexpr (site == Site::update) change = change * (T(1) - importance[i]);
        p[i] = p[i] - change;
        m[i] = mean;
        v[i] = square;
    }
}

template <class T>
using StepSome = void (*)(T*, const T*, T*, T*, const T*, int64_t, const Factors<T>&);

template <class T>
StepSome<T> step_for(bool softly, const AdamWStep& step) {
    if (!softly) return step.decays ? step_some<T, Site::none, true> : step_some<T, Site::none, false>;
    if (step.update_site) return step.decays ? step_some<T, Site::update, true> : step_some<T, Site::update, false>;
    return step.decays ? step_some<T, Site::gradient, true> : step_some<T, Site::gradient, false>;
}

// Update one block of one parameter.
template <class T>
void step_block(const AdamWEntry& entry, const AdamWStep& step, int64_t at, int64_t count) {
    T buffers[5][block];
    T* p = values_of(entry.param, at, count, buffers[0]);
    const T* g = values_of(entry.grad, at, count, buffers[1]);
    T* m = values_of(entry.exp_avg, at, count, buffers[2]);
    T* v = values_of(entry.exp_avg_sq, at, count, buffers[3]);
    const bool softly = entry.importance.data != nullptr;
    const T* importance = softly ? values_of(entry.importance, at, count, buffers[4]) : nullptr;
    step_for<T>(softly, step)(p, g, m, v, importance, count, Factors<T>(step));
    put_back(p, count, entry.param, at);
    put_back(m, count, entry.exp_avg, at);
    put_back(v, count, entry.exp_avg_sq, at);
}

// The blocks of all parameters, numbered consecutively.
struct AdamWBlocks {
    const AdamWEntry* entries;
    int64_t count;
    const AdamWStep& step;

    static int64_t blocks_of(const AdamWEntry& entry) { return (entry.size + block - 1) / block; }

    void run(int64_t begin, int64_t end) const {
        int64_t first = 0;
        for (int64_t i = 0; i < count && first < end; ++i) {
            const AdamWEntry& entry = entries[i];
            const int64_t blocks = blocks_of(entry);
            const int64_t from = begin > first ? begin - first : 0, to = end - first < blocks ? end - first : blocks;
            for (int64_t at = from * block; at < to * block && at < entry.size; at += block) {
                const int64_t size = entry.size - at < block ? entry.size - at : block;
                if (entry.param.kind == Kind::float64)
                    step_block<double>(entry, step, at, size);
                else
                    step_block<float>(entry, step, at, size);
            }
            first += blocks;
        }
    }
};

void adamw(const AdamWEntry* entries, int64_t count, const AdamWStep& step, int threads) {
    AdamWBlocks all{entries, count, step};
    int64_t units = 0, elements = 0;
    for (int64_t i = 0; i < count; ++i) {
        units += AdamWBlocks::blocks_of(entries[i]);
        elements += entries[i].size;
    }
    if (elements == 0) return;
    const int64_t pieces = (elements + share - 1) / share;
    parallel_for(
        units, (units + pieces - 1) / pieces, threads,
        [](void* data, int64_t begin, int64_t end) { static_cast<AdamWBlocks*>(data)->run(begin, end); }, &all);
}

}  // namespace
}  // namespace tss::TSS_ISA
