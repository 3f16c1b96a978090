// Importance: statistics in float64 in a fixed order, then |tanh|, and the maximum over tasks. Included once for each
// instruction set.
#pragma once

#include "blocks.h"

namespace tss::TSS_ISA {
namespace {

constexpr double importance_eps = 1e-6;
constexpr int64_t importance_share = share / 4;  // an element takes several times as long as in other kernels
constexpr int lanes = 16;  // partial sums side by side; a constant, so that every instruction set adds alike

inline double sum_of(const double* sums) {
    double total = 0;
    for (int lane = 0; lane < lanes; ++lane) total += sums[lane];
    return total;
}

// Count, mean and sum of squared deviations of some elements; initially of none.
struct Statistics {
    double count = 0, mean = 0, squares = 0;

    // Merge with the statistics of other elements, by Chan, Golub and LeVeque (1979).
    void join(const Statistics& other) {
        const double total = count + other.count, difference = other.mean - mean;
        mean += difference * (other.count / total);
        squares += other.squares + difference * difference * (count * other.count / total);
        count = total;
    }
};

Statistics statistics_of(const double* values, int64_t count) {
    const int64_t whole = count / lanes * lanes;
    double sums[lanes] = {}, squares[lanes] = {};
    for (int64_t i = 0; i < whole; i += lanes)
        for (int lane = 0; lane < lanes; ++lane) sums[lane] += values[i + lane];
    for (int64_t i = whole; i < count; ++i) sums[i - whole] += values[i];
    Statistics found;
    found.count = static_cast<double>(count);
    found.mean = sum_of(sums) / found.count;
    for (int64_t i = 0; i < whole; i += lanes)
        for (int lane = 0; lane < lanes; ++lane) {
            const double centred = values[i + lane] - found.mean;
            squares[lane] += centred * centred;
        }
    for (int64_t i = whole; i < count; ++i) squares[i - whole] += (values[i] - found.mean) * (values[i] - found.mean);
    found.squares = sum_of(squares);
    return found;
}

// |tanh z| to ten digits, also near 0: with e = exp(-2 |z|) - 1 it is |e / (2 + e)|, and computing e as
// 2^n (exp(r) - 1) + 2^n - 1 with |r| <= log(2) / 2 loses no digits where e is small.
inline double abs_tanh(double z) {
    double power = -2 * __builtin_fabs(z);
    power = power < -64 ? -64 : power;  // NaN stays
    const double shifter = 0x1.8p52, shifted = power * 0x1.71547652b82fep0 + shifter, n = shifted - shifter;
    const double r = power - n * 0x1.62e42fefa39efp-1;
    const double series =
        r * (1 + r * (1.0 / 2 + r * (1.0 / 6 + r * (1.0 / 24 + r * (1.0 / 120 + r * (1.0 / 720 + r * (1.0 / 5040 +
        r * (1.0 / 40320 + r * (1.0 / 362880)))))))));
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double scale;
    std::memcpy(&scale, &bits, sizeof scale);
    const double e = scale * series + (scale - 1);
    return __builtin_fabs(e / (2 + e));
}

// Read elements minus `origin`, the first one of their group, so that equal elements become exactly 0.
void read_shifted(Numbers raw, int64_t at, int64_t count, double origin, double* to) {
    read(raw, at, count, to);
    for (int64_t i = 0; i < count; ++i) to[i] -= origin;
}

inline bool is_nan(float value) { return value != value; }
inline bool is_nan(double value) { return value != value; }

template <class T>
void maximum_of(T* __restrict total, const T* __restrict other, int64_t count) {
    for (int64_t i = 0; i < count; ++i) total[i] = is_nan(total[i]) || total[i] > other[i] ? total[i] : other[i];
}

// Elementwise total <- max(total, other), both of one dtype; NaN where either is.
void maximum(Numbers total, int64_t at, const void* other, int64_t count) {
    if (total.kind == Kind::float32)
        maximum_of(static_cast<float*>(total.data) + at, static_cast<const float*>(other), count);
    else if (total.kind == Kind::float64)
        maximum_of(static_cast<double*>(total.data) + at, static_cast<const double*>(other), count);
    else {
        uint16_t* before = static_cast<uint16_t*>(total.data) + at;
        const uint16_t* after = static_cast<const uint16_t*>(other);
        float wide_total[block], wide_other[block];
        read(total, at, count, wide_total);
        read(Numbers{const_cast<uint16_t*>(after), total.kind}, 0, count, wide_other);
        for (int64_t i = 0; i < count; ++i)
            before[i] = is_nan(wide_total[i]) || wide_total[i] > wide_other[i] ? before[i] : after[i];
    }
}

struct Importance {
    Numbers raw, target;
    bool update;
    int64_t groups, size;

    int64_t chunks() const { return (size + block - 1) / block; }
    int64_t length(int64_t chunk) const { return size - chunk * block < block ? size - chunk * block : block; }

    double origin(int64_t group) const {
        double first;
        read(raw, group * size, 1, &first);
        return first;
    }

    Statistics measure(int64_t group, int64_t chunk) const {
        double values[block];
        read_shifted(raw, group * size + chunk * block, length(chunk), origin(group), values);
        return statistics_of(values, length(chunk));
    }

    void finish(int64_t group, int64_t chunk, const Statistics& all) const {
        const int64_t at = group * size + chunk * block, count = length(chunk);
        const double scale = 1 / (root_of(all.squares / all.count) + importance_eps);
        double values[block];
        float importance[block];
        read_shifted(raw, at, count, origin(group), values);
        for (int64_t i = 0; i < count; ++i)
            importance[i] = static_cast<float>(abs_tanh((values[i] - all.mean) * scale));
        if (!update) {
            write(importance, count, target, at);
            return;
        }
        double room[block];  // large enough for any dtype
        const Numbers rounded{room, target.kind};
        write(importance, count, rounded, 0);
        maximum(target, at, room, count);
    }

    static double root_of(double value) { return __builtin_sqrt(value); }

    void whole_group(int64_t group) const {
        Statistics all;
        for (int64_t chunk = 0; chunk < chunks(); ++chunk) all.join(measure(group, chunk));
        for (int64_t chunk = 0; chunk < chunks(); ++chunk) finish(group, chunk, all);
    }
};

// A single group, cut into chunks that threads share; the statistics are merged in the order of the chunks.
struct SharedGroup {
    const Importance& work;
    Statistics* parts;
    Statistics all;

    static void measure(void* data, int64_t begin, int64_t end) {
        SharedGroup& group = *static_cast<SharedGroup*>(data);
        for (int64_t chunk = begin; chunk < end; ++chunk) group.parts[chunk] = group.work.measure(0, chunk);
    }

    static void finish(void* data, int64_t begin, int64_t end) {
        SharedGroup& group = *static_cast<SharedGroup*>(data);
        for (int64_t chunk = begin; chunk < end; ++chunk) group.work.finish(0, chunk, group.all);
    }
};

void importance(Numbers raw, Numbers target, bool update, int64_t groups, int64_t size, int threads) {
    if (groups == 0 || size == 0) return;
    Importance work{raw, target, update, groups, size};
    if (groups > 1 || size <= importance_share || threads <= 1) {
        const int64_t grain = size < importance_share ? importance_share / size : 1;
        parallel_for(
            groups, grain, threads,
            [](void* data, int64_t begin, int64_t end) {
                for (int64_t group = begin; group < end; ++group) static_cast<Importance*>(data)->whole_group(group);
            },
            &work);
        return;
    }
    const int64_t chunks = work.chunks();
    SharedGroup group{work, new Statistics[static_cast<size_t>(chunks)], Statistics()};
    parallel_for(chunks, importance_share / block, threads, SharedGroup::measure, &group);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) group.all.join(group.parts[chunk]);
    parallel_for(chunks, importance_share / block, threads, SharedGroup::finish, &group);
    delete[] group.parts;
}

void accumulate(void* total, const void* other, Kind kind, int64_t count, int threads) {
    const int64_t width = kind == Kind::float64 ? 8 : kind == Kind::float32 ? 4 : 2;
    Blocks(1, count).share_out(threads, [&](int64_t at, int64_t, int64_t size) {
        maximum(Numbers{total, kind}, at, static_cast<const char*>(other) + at * width, size);
    });
}

}  // namespace
}  // namespace tss::TSS_ISA
