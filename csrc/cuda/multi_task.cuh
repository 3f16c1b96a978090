// Common to the products of rows of many tasks: the rows of a tile, which can be anywhere, and the results from their
// sums.
#pragma once

#include "cuda/activations.cuh"
#include "cuda/gated_linear.cuh"

namespace tss {

// One tile of a batch that was grouped by task.
struct TaskTile {
    std::int64_t task, first, count;

    __device__ TaskTile(const MultiTaskArguments& p, std::int64_t number)
        : task(p.tiles[3 * number]), first(p.tiles[3 * number + 1]), count(p.tiles[3 * number + 2]) {}

    // Return its task's gates; without a task, those of some task.
    __device__ const std::uint8_t* gates(const MultiTaskArguments& p) const { return p.bank + max(task, std::int64_t(0)) * p.task_bytes; }

    // Write its rows to `rows`, with -1 after the last; all threads may read them afterwards.
    template <int tile_rows, int threads>
    __device__ void list_rows(std::int64_t* rows, const MultiTaskArguments& p) const {
        for (int place = threadIdx.x; place < tile_rows; place += threads) {
            const std::int64_t row = first + place;
            rows[place] = place < count ? p.order[row / p.length] * p.length + row % p.length : -1;
        }
        __syncthreads();
    }
};

// A thread's chunks of a tile of activations whose rows are listed; it has the same layout as with `load_tile`.
template <int tile_rows, int threads, bool aligned, class T>
struct ListedRows {
    static constexpr int chunks_of_row = k_tile / chunk_elements, rows_at_once = threads / chunks_of_row;
    static constexpr int own = tile_rows / rows_at_once;
    static_assert(tile_rows % rows_at_once == 0 && rows_at_once % 8 == 0, "all threads copy alike");
    View<T> view;
    const T* from[own];
    bool there[own];

    __device__ ListedRows(const View<T>& matrix, const std::int64_t* rows) : view(matrix) {
        const std::int64_t column = threadIdx.x % chunks_of_row * chunk_elements;
#pragma unroll
        for (int i = 0; i < own; ++i) {
            const std::int64_t row = rows[threadIdx.x / chunks_of_row + i * rows_at_once];
            there[i] = row >= 0;
            from[i] = view.data + max(row, std::int64_t(0)) * view.row_stride + column * view.column_stride;
        }
    }

    __device__ __forceinline__ void load(char* tile, std::int64_t k) const {
        const int column = threadIdx.x % chunks_of_row * chunk_elements;
        char* target = tile + tile_offset<tile_rows>(threadIdx.x / chunks_of_row, column);
        const std::int64_t left = min(std::int64_t(chunk_elements), max(std::int64_t(0), view.columns - k - column));
#pragma unroll
        for (int i = 0; i < own; ++i) {
            load_chunk<aligned>(target + i * rows_at_once * panel_row_bytes, view, from[i] + k * view.column_stride,
                                there[i] ? static_cast<int>(left) : 0);
        }
    }
};

// Computes one element of the result from its sum.
template <class T, bool transposed>
struct Finish {
    const MultiTaskArguments& p;
    bool has_task;
    std::int64_t features;

    __device__ float with_bias(std::int64_t feature, float sum) const {
        if (!has_task) return NAN;
        return p.bias == nullptr ? sum : sum + to_float(static_cast<const T*>(p.bias)[feature]);
    }

    __device__ void store(std::int64_t row, std::int64_t feature, float value) const {
        const std::int64_t at = row * features + feature;
        const std::int64_t other = row * p.residual_row_stride + feature * p.residual_column_stride;
        if (p.wider) {
            static_cast<float*>(p.result)[at] = value + static_cast<const float*>(p.residual)[other];
        } else {
            if (p.residual != nullptr) value += to_float(static_cast<const T*>(p.residual)[other]);
            static_cast<T*>(p.result)[at] = from_float<T>(value);
        }
    }

    // Apply the activation and store its result or gradient.
    template <class Activation>
    __device__ void through(Activation, std::int64_t row, std::int64_t feature, float sum) const {
        T* hidden = static_cast<T*>(p.hidden) + row * features + feature;
        if constexpr (transposed) {
            store(row, feature, has_task ? Activation::gradient(sum, to_float(*hidden)) : NAN);
        } else {
            float argument = with_bias(feature, sum);
            if constexpr (!Activation::keeps_result) {
                *hidden = from_float<T>(argument);
                argument = to_float(*hidden);
            }
            store(row, feature, Activation::value(argument));
        }
    }
};

// Call each(use), where use(row, feature, sum) finishes one element; `each` calls it for every element of a tile.
template <class T, bool transposed, class Each>
__device__ __forceinline__ void finish(const MultiTaskArguments& p, const TaskTile& tile, std::int64_t features, const Each& each) {
    const Finish<T, transposed> element{p, tile.task >= 0, features};
    if (p.activation < 0) {
        each([&](std::int64_t row, std::int64_t feature, float sum) { element.store(row, feature, element.with_bias(feature, sum)); });
        return;
    }
    with_activation(Activation(p.activation), [&](auto activation) {
        each([&](std::int64_t row, std::int64_t feature, float sum) { element.through(activation, row, feature, sum); });
    });
}

}  // namespace tss
