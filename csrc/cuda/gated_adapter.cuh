// The whole gated adapter for 16-bit weights, y = x + (U * g) a((D * g) x + b) + c, and its input gradient: one kernel.
//
// A block computes both products for some rows, each transposed as in product.cuh. One ring of copies loads the tiles
// of the first product, 64 of k at a time, and continues with those of the second, 64 features at a time, so that
// nothing waits where one ends and the other starts. Between them the hidden units stay in shared memory.
#pragma once

#include "cuda/adapter_tile.cuh"

namespace tss {

// Compute eight hidden units of a row from the first product's sums: `values` is the operand of the second product, and
// memory receives what the backward pass needs. Units that only pad the tile are set to 0, since their sums are NaN
// where x is not finite.
template <bool backward, class T, class X>
__device__ __forceinline__ void finish_units(T (&values)[chunk_elements], const float* sums,
                                             const AdapterOperands<T, X>& operands, std::int64_t row,
                                             std::int64_t unit) {
    const std::int64_t bottleneck = operands.down.rows, at = row * bottleneck + unit, left = bottleneck - unit;
    const int inside = inside_chunk(left);
    const int valid = row < operands.x.rows ? inside : 0;
    alignas(16) T kept[chunk_elements];
    if constexpr (backward) load_chunk(kept, operands.hidden + at, 1, valid, operands.hidden_aligned);
    with_activation(operands.activation, [&](auto activation) {
        using A = decltype(activation);
#pragma unroll
        for (int i = 0; i < chunk_elements; ++i) {
            float sum = i < inside ? sums[i] : 0.0f;
            if constexpr (backward) {
                values[i] = from_float<T>(A::gradient(sum, to_float(kept[i])));
            } else {
                if (operands.down_bias != nullptr && i < inside) sum += to_float(operands.down_bias[unit + i]);
                kept[i] = from_float<T>(A::keeps_result ? A::value(sum) : sum);
                values[i] = A::keeps_result ? kept[i] : from_float<T>(A::value(to_float(kept[i])));
            }
        }
    });
    if constexpr (backward) store_chunk(operands.d_hidden + at, values, valid, operands.hidden_aligned);
    else store_chunk(operands.hidden + at, kept, valid, operands.hidden_aligned);
}

// Turn the first product's sums into the second's operand, `hidden` (rows x units in panels), through `handed`, which
// no thread uses any more. A barrier follows the last use, before any thread returns.
template <class Tile, bool backward, class T, class X>
__device__ __forceinline__ void finish_hidden(const Sums<typename Tile::First>& sums, char* hidden, char* handed,
                                              const AdapterOperands<T, X>& operands, std::int64_t first_row) {
    constexpr int rows = Tile::handed_rows, chunks_of_row = Tile::hidden / chunk_elements;
    float* between = reinterpret_cast<float*>(handed);
    for (int from = 0; from < Tile::rows; from += rows) {
        sums.each([&](int m, int n, float sum) {
            if (n >= from && n < from + rows) between[(n - from) * Tile::pitch + m] = sum;
        });
        __syncthreads();
        for (int chunk = threadIdx.x; chunk < rows * chunks_of_row; chunk += Tile::threads) {
            const int row = chunk / chunks_of_row, unit = chunk % chunks_of_row * chunk_elements;
            alignas(16) float eight[chunk_elements];
            const float4* given = reinterpret_cast<const float4*>(between + row * Tile::pitch + unit);
            reinterpret_cast<float4*>(eight)[0] = given[0];
            reinterpret_cast<float4*>(eight)[1] = given[1];
            alignas(16) T values[chunk_elements];
            finish_units<backward>(values, eight, operands, first_row + from + row, unit);
            char* at = hidden + tile_offset<Tile::rows>(from + row, unit);
            *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(values);
        }
        __syncthreads();
    }
}

// Operand B of the second product, which stays in registers for all features.
template <class Tile>
struct HiddenPieces {
    unsigned values[Tile::hidden_steps][Tile::Second::pieces_n / 2][4];

    __device__ explicit HiddenPieces(const char* hidden) {
#pragma unroll
        for (int step = 0; step < Tile::hidden_steps; ++step) {
#pragma unroll
            for (int j = 0; j < Tile::Second::pieces_n; j += 2) {
                load_b<Tile::rows>(values[step][j / 2], hidden, Tile::Second::first_n() + 8 * j, step * k_step);
            }
        }
    }
};

// Compute the second product for 64 features.
template <class T, class Tile, bool backward, class Place>
__device__ __forceinline__ void multiply_second(Sums<typename Tile::Second>& sums, const Place& place,
                                                const HiddenPieces<Tile>& hidden) {
    using Second = typename Tile::Second;
#pragma unroll
    for (int step = 0; step < Tile::hidden_steps; ++step) {
        const int k = step * k_step;
        unsigned a[Second::pieces_m][4];
#pragma unroll
        for (int i = 0; i < Second::pieces_m; ++i) {
            const int m = Second::first_m() + 16 * i;
            if constexpr (backward) {
                load_a_transposed<Tile::hidden>(a[i], place.a, m, k);
                mask_a_transposed<panel_columns / word_gates>(a[i], place.gates, m, k);
            } else {
                load_a<panel_columns>(a[i], place.a, m, k);
                mask_a<Tile::hidden_words>(a[i], place.gates, m, k);
            }
        }
#pragma unroll
        for (int j = 0; j < Second::pieces_n; j += 2) add_products<T>(sums, a, j, hidden.values[step][j / 2]);
    }
}

// Write the sums, transposed back and rounded, over the tile of the residual, which, if `residual`, is added first: a
// warp reads from it exactly the elements that it writes.
template <class T, int tile_rows, bool residual, class Second>
__device__ __forceinline__ void stage_result(const Sums<Second>& sums, char* tile) {
    const int lane = threadIdx.x % warp_size;
#pragma unroll
    for (int i = 0; i < Second::pieces_m; ++i) {
#pragma unroll
        for (int j = 0; j < Second::pieces_n; j += 2) {
            const int m = Second::first_m() + 16 * i, n = Second::first_n() + 8 * j;
            unsigned given[4], made[4];
            if constexpr (residual) load_a_transposed<tile_rows>(given, tile, m, n);
#pragma unroll
            for (int matrix = 0; matrix < 4; ++matrix) {
                float lower = sums.values[i][4 * j + 2 * matrix], upper = sums.values[i][4 * j + 2 * matrix + 1];
                if constexpr (residual) {
                    const T* pair = reinterpret_cast<const T*>(&given[matrix]);
                    lower += to_float(pair[0]);
                    upper += to_float(pair[1]);
                }
                made[matrix] = rounded_pair<T>(lower, upper);
            }
            store_matrices_transposed(tile + piece_offset<tile_rows>(n, m, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8), made);
        }
    }
}

// Copy a staged tile to the result; where the residual is wider, add it to the residual first.
template <class T, class X, class Tile>
__device__ __forceinline__ void store_result(const char* tile, const AdapterOperands<T, X>& operands,
                                             std::int64_t first_row, std::int64_t first_column) {
    constexpr int chunks_of_row = panel_columns / chunk_elements;
    for (int chunk = threadIdx.x; chunk < Tile::rows * chunks_of_row; chunk += Tile::threads) {
        const int n = chunk / chunks_of_row, m = chunk % chunks_of_row * chunk_elements;
        const std::int64_t row = first_row + n, column = first_column + m, left = operands.x.columns - column;
        if (row >= operands.x.rows || left <= 0) continue;
        const int valid = inside_chunk(left);
        X* to = operands.result + row * operands.x.columns + column;
        alignas(16) T staged[chunk_elements];
        const char* from = tile + tile_offset<Tile::rows>(n, m);
        *reinterpret_cast<uint4*>(staged) = *reinterpret_cast<const uint4*>(from);
        if constexpr (std::is_same_v<T, X>) {
            store_chunk(to, staged, valid, operands.result_aligned);
        } else {
            const float* residual = operands.x.data + row * operands.x.row_stride + column * operands.x.column_stride;
            alignas(16) float sums[chunk_elements];
            load_chunk(sums, residual, operands.x.column_stride, valid, operands.x_aligned);
#pragma unroll
            for (int i = 0; i < chunk_elements; ++i) sums[i] += to_float(staged[i]);
            store_chunk(to, sums, valid, operands.result_aligned);
        }
    }
}

// Initialize the second product's sums with the bias.
template <class Second, class T>
__device__ __forceinline__ void start_from_bias(Sums<Second>& sums, const T* bias, std::int64_t first,
                                                std::int64_t features) {
#pragma unroll
    for (int i = 0; i < 2 * Second::pieces_m; ++i) {
        const std::int64_t feature = first + Second::first_m() + 8 * i + threadIdx.x % warp_size / 4;
        const float value = bias != nullptr && feature < features ? to_float(bias[feature]) : 0.0f;
#pragma unroll
        for (int j = 0; j < 2 * Second::pieces_n; ++j) sums.values[i / 2][4 * (j / 2) + 2 * (i % 2) + j % 2] = value;
    }
}

template <class T, class X, class Tile, bool backward>
__global__ void __launch_bounds__(Tile::threads, 2)
    gated_adapter_kernel(const __grid_constant__ AdapterOperands<T, X> operands) {
    constexpr Operand operand = backward ? Operand::weight_transposed : Operand::weight;
    using Place = Stage<typename Tile::First, operand>;
    char *hidden = dynamic_shared(), *ring = hidden + Tile::hidden_bytes;
    const std::int64_t first_row = std::int64_t(blockIdx.x) * Tile::rows, features = operands.x.columns;
    const int tiles = static_cast<int>(divide_up(features, panel_columns)), all = operands.result != nullptr ? 2 * tiles : tiles;
    const Loader<Tile, Place, backward, T, X> loader(operands, first_row);
    // The second product processes its features from the last to the first: the part of x, its residual, that was read
    // last is read again first and may still be in the cache.
    const auto column_of = [&](int tile) { return std::int64_t(tile < tiles ? tile : all - 1 - tile) * panel_columns; };
    int place = 0;
    {
        Sums<typename Tile::First> sums;
        sums.clear();
        // The turns before tile 0 fill the ring; a separate loop would repeat the loading code, which is long.
        for (int tile = 1 - Tile::stages; tile < tiles; ++tile) {
            turn_ring<Tile::stages, false>(place, tile, all, [&](int to, int next) {
                loader.load(Place(ring, to), column_of(next), next < tiles);
            });
            if (tile < 0) continue;
            multiply<T, typename Tile::First, operand, false>(sums, Place(ring, place));
        }
        __syncthreads();  // all are done with the last tile, whose place is free until the ring turns again
        finish_hidden<Tile, backward>(sums, hidden, Place(ring, place).a, operands, first_row);
    }
    const HiddenPieces<Tile> pieces(hidden);
    for (int tile = tiles; tile < all; ++tile) {
        turn_ring<Tile::stages, false>(place, tile, all, [&](int to, int next) {
            loader.load(Place(ring, to), column_of(next), false);
        });
        const std::int64_t first_column = column_of(tile);
        const Place at(ring, place);
        Sums<typename Tile::Second> sums;
        if constexpr (backward) sums.clear();
        else start_from_bias(sums, operands.up_bias, first_column, features);
        multiply_second<T, Tile, backward>(sums, at, pieces);
        stage_result<T, Tile::rows, std::is_same_v<T, X>>(sums, at.b);
        __syncthreads();
        store_result<T, X, Tile>(at.b, operands, first_row, first_column);
    }
    wait_for_copies<0>();
}

}  // namespace tss
