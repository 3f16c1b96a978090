// Products of rows of many tasks: one panel of a task's masked weight is made in the first-level cache and multiplied by
// all rows of the task. Included once for each instruction set.
//
// Every element of a result is summed in a fixed order: `depth` products one after the other, each fused with its
// addition, and these partial sums one after the other. The order does not depend on which or how many rows share a
// panel, on threads or on vectors, so that the bits of a row depend only on the row, its task's gates, the weight and
// the bias.
#pragma once

#include <algorithm>
#include <type_traits>

#include "gated_linear.h"
#include "numbers.h"
#include "threads.h"
#include "vectors.h"

namespace tss::TSS_ISA {
namespace {

constexpr int64_t depth = 64;           // of a panel; a whole number of words of gates
constexpr int64_t base_depth = 256;     // of the base that panels are made from, in the second-level cache
constexpr int64_t most_rows = 256;      // that a thread takes at a time
constexpr int64_t fewest_rows = 32;     // for which making a base again pays
constexpr int vectors = 4;              // of a panel's width
#if defined(__AVX512F__)
constexpr int tile_rows = 6;            // the sums of this many rows fit in the registers
#else
constexpr int tile_rows = 3;
#endif

template <class T>
constexpr int64_t panel_width = vectors * Vector<T>::width;

// sums (rows, panel_width) += x (rows, count) panel (count, panel_width)
template <class T, int rows>
void multiply(const T* const* x, const Bits<T>* panel, int64_t count, T* sums) {
    constexpr int width = Vector<T>::width;
    Vector<T> partial[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) partial[r][v] = Vector<T>::zero();
    for (int64_t k = 0; k < count; ++k) {
        Vector<T> weights[vectors];
        for (int v = 0; v < vectors; ++v) weights[v] = Vector<T>::load(panel + k * panel_width<T> + v * width);
        for (int r = 0; r < rows; ++r) {
            const Vector<T> one = Vector<T>::all(x[r][k]);
            for (int v = 0; v < vectors; ++v) partial[r][v].multiply_add(one, weights[v]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) partial[r][v].add_to(sums + r * panel_width<T> + v * width);
}

template <class T, int rows = tile_rows>
void multiply_some(int64_t wanted, const T* const* x, const Bits<T>* panel, int64_t count, T* sums) {
    if (wanted == rows) return multiply<T, rows>(x, panel, count, sums);
    if constexpr (rows > 1) multiply_some<T, rows - 1>(wanted, x, panel, count, sums);
}

// Return the gates of a word's columns, lowest bit first; bytes beyond the row's end are not read and count as off.
template <class U>
U gate_word(const uint8_t* row, int64_t byte, int64_t row_bytes) {
    U word = 0;
    if (row_bytes - byte >= static_cast<int64_t>(sizeof(U)))  // a whole word becomes one load
        for (size_t i = 0; i < sizeof(U); ++i) word |= static_cast<U>(row[byte + static_cast<int64_t>(i)]) << (8 * i);
    else
        for (int64_t i = 0; i < row_bytes - byte; ++i) word |= static_cast<U>(row[byte + i]) << (8 * i);
    return word;
}

// Values that all rows of a call share.
struct Plan {
    const MultiTaskProduct& of;
    const int64_t* order;
    int64_t rows, sums_over, features, row_bytes, panels, chunk;

    Plan(const MultiTaskProduct& product, const int64_t* order_, int64_t width, int threads)
        : of(product), order(order_), rows(product.entries * product.length),
          sums_over(product.backward ? product.out_features : product.in_features),
          features(product.backward ? product.in_features : product.out_features),
          row_bytes((product.in_features + 7) / 8), panels((features + width - 1) / width) {
        // Enough pieces for every thread, each with enough rows to pay for its set-up.
        const int64_t pieces = (2 * threads + panels - 1) / std::max<int64_t>(panels, 1);
        chunk = std::clamp((rows + pieces - 1) / pieces, fewest_rows, most_rows);
    }

    int64_t chunks() const { return (rows + chunk - 1) / chunk; }
    // Index in x of the row at a place in the order of tasks.
    int64_t row(int64_t place) const { return order[place / of.length] * of.length + place % of.length; }
    int64_t task(int64_t place) const { return of.task_ids[order[place / of.length]]; }
};

// One panel of features for some rows: one unit of a thread's work, with its own memory.
template <class T>
class Piece {
    using U = Bits<T>;
    static constexpr int64_t width = panel_width<T>;

public:
    Piece(const Plan& plan, int64_t panel, int64_t first, int64_t last)
        : plan_(plan), from_(panel * width), wide_(std::min(width, plan.features - from_)), first_(first), last_(last) {}

    void run() {
        std::memset(sums_, 0, sizeof(T) * static_cast<size_t>((last_ - first_) * width));
        std::memset(panel_, 0, sizeof panel_);
        for (int64_t k = 0; k < plan_.sums_over; k += base_depth) {
            make_base(k, std::min(base_depth, plan_.sums_over - k));
            for (int64_t place = first_; place < last_;) {
                const int64_t end = end_of_task(place);
                multiply_task(k, std::min(base_depth, plan_.sums_over - k), place, end);
                place = end;
            }
        }
        write_rows();
    }

private:
    // Copy the weights of this panel, contiguous along features, 0 beyond the last one.
    void make_base(int64_t k, int64_t count) {
        T read_here[base_depth];
        std::memset(base_, 0, sizeof base_);
        const int64_t in = plan_.of.in_features;
        if (plan_.of.backward) {
            for (int64_t i = 0; i < count; ++i) {
                const T* row = values_of(plan_.of.weight, (k + i) * in + from_, wide_, read_here);
                std::memcpy(base_ + i * width, row, sizeof(T) * static_cast<size_t>(wide_));
            }
            return;
        }
        for (int64_t lane = 0; lane < wide_; ++lane) {
            const T* row = values_of(plan_.of.weight, (from_ + lane) * in + k, count, read_here);
            for (int64_t i = 0; i < count; ++i) std::memcpy(base_ + i * width + lane, row + i, sizeof(T));
        }
    }

    int64_t end_of_task(int64_t place) const {
        const int64_t task = plan_.task(place), length = plan_.of.length;
        while (place < last_ && plan_.task(place) == task) place += length - place % length;
        return std::min(place, last_);
    }

    void multiply_task(int64_t k, int64_t count, int64_t place, int64_t end) {
        const uint8_t* gates = plan_.of.bank + plan_.task(place) * plan_.of.task_stride;
        for (int64_t at = 0; at < count; at += depth) {
            const int64_t deep = std::min(depth, count - at);
            if (plan_.of.backward)
                mask_along_features(gates, k, at, deep);
            else
                mask_along_sums(gates, k, at, deep);
            for (int64_t row = place; row < end; row += tile_rows)
                multiply_rows(k + at, deep, row, std::min<int64_t>(tile_rows, end - row));
        }
    }

    // A lane is an output feature, whose gates for the columns to sum over are bits of one word.
    void mask_along_sums(const uint8_t* gates, int64_t k, int64_t at, int64_t deep) {
        constexpr int64_t bits = 8 * sizeof(U);
        for (int64_t column = 0; column < deep; column += bits) {
            U words[width] = {};
            for (int64_t lane = 0; lane < wide_; ++lane)
                words[lane] =
                    gate_word<U>(gates + (from_ + lane) * plan_.row_bytes, (k + at + column) / 8, plan_.row_bytes);
            const int64_t count = std::min(bits, deep - column);
            for (int64_t lane = 0; lane < width; lane += Vector<T>::width)
                mask_lanes(words + lane, base_ + (at + column) * width + lane, panel_ + column * width + lane, count);
        }
    }

    // Mask one vector of lanes, from the last column to the first: shifts bring the gate of each column in turn to the
    // top bit of its word.
    static void mask_lanes(const U* words, const U* from, U* to, int64_t count) {
        typedef U Lanes __attribute__((vector_size(sizeof(T) * Vector<T>::width)));
        typedef std::make_signed_t<U> Signs __attribute__((vector_size(sizeof(T) * Vector<T>::width)));
        Lanes gates, weights;
        std::memcpy(&gates, words, sizeof gates);
        gates <<= static_cast<U>(8 * sizeof(U)) - static_cast<U>(count);
        for (int64_t i = count - 1; i >= 0; --i, gates += gates) {
            std::memcpy(&weights, from + i * width, sizeof weights);
            weights &= reinterpret_cast<Lanes>(reinterpret_cast<Signs>(gates) < 0);
            std::memcpy(to + i * width, &weights, sizeof weights);
        }
    }

    // A lane is an input feature: a row of gates runs along the lanes.
    void mask_along_features(const uint8_t* gates, int64_t k, int64_t at, int64_t deep) {
        for (int64_t i = 0; i < deep; ++i)
            mask_some(base_ + (at + i) * width, gates + (k + at + i) * plan_.row_bytes + from_ / 8, wide_,
                      panel_ + i * width);
    }

    void multiply_rows(int64_t k, int64_t deep, int64_t place, int64_t count) {
        T read_here[tile_rows][depth];
        const T* x[tile_rows];
        for (int64_t r = 0; r < count; ++r)
            x[r] = values_of(plan_.of.x, plan_.row(place + r) * plan_.of.x_stride + k, deep, read_here[r]);
        multiply_some<T>(count, x, panel_, deep, sums_ + (place - first_) * width);
    }

    void write_rows() {
        T read_here[width];
        const Numbers bias = plan_.of.bias;
        const T* added = bias.data == nullptr ? nullptr : values_of(bias, from_, wide_, read_here);
        for (int64_t place = first_; place < last_; ++place) {
            T* row = sums_ + (place - first_) * width;
            if (added != nullptr)
                for (int64_t lane = 0; lane < wide_; ++lane) row[lane] += added[lane];
            write(row, wide_, plan_.of.y, plan_.row(place) * plan_.features + from_);
        }
    }

    const Plan& plan_;
    const int64_t from_, wide_, first_, last_;
    alignas(64) U base_[base_depth * width];
    alignas(64) U panel_[depth * width];
    alignas(64) T sums_[most_rows * width];
};

template <class T>
void multi_task_of(const MultiTaskProduct& product, const int64_t* order, int threads) {
    const Plan plan(product, order, panel_width<T>, threads);
    if (plan.rows == 0 || plan.features == 0) return;
    parallel_for(
        plan.panels * plan.chunks(), 1, threads,
        [](void* context, int64_t begin, int64_t end) {
            const Plan& shared = *static_cast<const Plan*>(context);
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t first = unit / shared.panels * shared.chunk;
                Piece<T>(shared, unit % shared.panels, first, std::min(first + shared.chunk, shared.rows)).run();
            }
        },
        const_cast<Plan*>(&plan));
}

void multi_task_product(const MultiTaskProduct& product, const int64_t* order, int threads) {
    if (product.weight.kind == Kind::float64)
        multi_task_of<double>(product, order, threads);
    else
        multi_task_of<float>(product, order, threads);
}

}  // namespace
}  // namespace tss::TSS_ISA
