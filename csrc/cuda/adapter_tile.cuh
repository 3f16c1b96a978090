// The tiles of the adapter's blocks, and how they are loaded into shared memory.
#pragma once

#include "cuda/activations.cuh"
#include "cuda/product.cuh"

namespace tss {

// Layout of a block: its Hidden units and Rows, the warps of both products, and the depth of the ring.
template <int Hidden, int Rows, int FirstM, int FirstN, int SecondM, int SecondN, int Stages>
struct AdapterTile {
    static constexpr int hidden = Hidden, rows = Rows, stages = Stages;
    static constexpr int hidden_words = Hidden / word_gates, hidden_steps = Hidden / k_step;
    using First = ProductTile<Hidden, Rows, FirstM, FirstN, Stages>;
    using Second = ProductTile<panel_columns, Rows, SecondM, SecondN, Stages>;
    static constexpr int threads = First::threads;
    static_assert(First::threads == Second::threads, "both products share the threads");
    // Tiles of weights and of gates have one size in both products and both directions.
    using Place = Stage<First, Operand::weight>;
    static constexpr int hidden_bytes = Hidden * Rows * 2;
    static constexpr std::size_t shared_bytes() { return hidden_bytes + Place::shared_bytes(); }
    // Sums are exchanged in float32 in the place of the tile that was used last; handed_rows rows at a time fit there.
    static constexpr int pitch = Hidden + 4;
    static constexpr int handed_rows = Rows == 128 ? 64 : 32;
    static_assert(handed_rows * pitch * 4 <= Place::bytes, "sums do not fit where a tile was");
};

// Operands of both passes. x is x or dy and may be float32; result is y or dx, or null if dx is not needed. hidden
// (rows, bottleneck) is written by the forward pass and read by the backward pass, which writes d_hidden. Weights and
// results are contiguous. *_aligned: rows start on boundaries of 16 bytes and columns are contiguous.
template <class T, class X>
struct AdapterOperands {
    View<X> x;
    View<T> down, up;
    GateBits down_gates, up_gates;
    const T *down_bias, *up_bias;
    X* result;
    T *hidden, *d_hidden;
    Activation activation;
    bool x_aligned, down_aligned, up_aligned, result_aligned, hidden_aligned;
};

// Load eight neighbouring values of a row, of which `valid` are inside; 16 bytes at once where `aligned`.
template <class T>
__device__ __forceinline__ void load_chunk(T (&values)[chunk_elements], const T* from, std::int64_t stride, int valid,
                                           bool aligned) {
    if (aligned && valid == chunk_elements) {
#pragma unroll
        for (int part = 0; part < int(sizeof(values) / 16); ++part) {
            reinterpret_cast<uint4*>(values)[part] = reinterpret_cast<const uint4*>(from)[part];
        }
    } else {
#pragma unroll
        for (int i = 0; i < chunk_elements; ++i) values[i] = i < valid ? from[i * stride] : from_float<T>(0.0f);
    }
}
template <class T>
__device__ __forceinline__ void store_chunk(T* to, const T (&values)[chunk_elements], int valid, bool aligned) {
    if (aligned && valid == chunk_elements) {
#pragma unroll
        for (int part = 0; part < int(sizeof(values) / 16); ++part) {
            reinterpret_cast<uint4*>(to)[part] = reinterpret_cast<const uint4*>(values)[part];
        }
    } else {
#pragma unroll
        for (int i = 0; i < chunk_elements; ++i) {
            if (i < valid) to[i] = values[i];
        }
    }
}

// Return how many of eight elements are inside, where `left` elements are left; it may be negative outside.
__device__ __forceinline__ int inside_chunk(std::int64_t left) {
    return static_cast<int>(left < 0 ? 0 : left < chunk_elements ? left : chunk_elements);
}

// The synchronous variant of load_tile: through registers, and rounded to T on the way where X is wider.
template <class T, int rows, int columns, int threads, int unrolled, class X>
__device__ __forceinline__ void load_through_registers(char* tile, const View<X>& view, bool aligned,
                                                       std::int64_t first_row, std::int64_t first_column) {
    constexpr int chunks_of_row = columns / chunk_elements;
#pragma unroll unrolled
    for (int chunk = threadIdx.x; chunk < rows * chunks_of_row; chunk += threads) {
        const int row = chunk / chunks_of_row, column = chunk % chunks_of_row * chunk_elements;
        const std::int64_t from_row = first_row + row, from_column = first_column + column;
        const int valid = from_row < view.rows ? inside_chunk(view.columns - from_column) : 0;
        alignas(16) X values[chunk_elements];
        const X* from = view.data + from_row * view.row_stride + from_column * view.column_stride;
        load_chunk(values, from, view.column_stride, valid, aligned);
        alignas(16) T narrow[chunk_elements];
#pragma unroll
        for (int i = 0; i < chunk_elements; ++i) {
            if constexpr (std::is_same_v<T, X>) narrow[i] = values[i];
            else narrow[i] = from_float<T>(values[i]);
        }
        *reinterpret_cast<uint4*>(tile + tile_offset<rows>(row, column)) = *reinterpret_cast<const uint4*>(narrow);
    }
}

// Loads of single elements are for odd sizes: small code matters more than speed.
template <class T, int rows, int columns, int threads, class X>
__device__ __forceinline__ void load_any(char* tile, const View<X>& view, bool aligned, std::int64_t first_row,
                                         std::int64_t first_column) {
    if constexpr (!std::is_same_v<T, X>) {
        load_through_registers<T, rows, columns, threads, 4>(tile, view, aligned, first_row, first_column);
    } else if (aligned) {
        load_tile<rows, columns, threads, true>(tile, view, first_row, first_column);
    } else {
        load_through_registers<T, rows, columns, threads, 1>(tile, view, false, first_row, first_column);
    }
}

// Loads the operands of the first product for 64 of k, or of the second for 64 features: weight, gates, and x, which is
// the residual of the second; a wider residual is not loaded here but read when the result is stored.
template <class Tile, class Place, bool backward, class T, class X>
struct Loader {
    static constexpr int threads = Tile::threads, panel_words = panel_columns / word_gates;
    const AdapterOperands<T, X>& operands;
    std::int64_t first_row;
    WholeTiles<Tile::hidden, panel_columns, threads> down;
    WholeGates<Tile::hidden, panel_words, threads> down_gates;
    WholeTiles<panel_columns, Tile::hidden, threads> up;
    WholeGates<panel_columns, Tile::hidden_words, threads> up_gates;
    WholeTiles<Tile::rows, panel_columns, threads> x;
    bool whole;  // whether everything except a last tile of fewer features is inside and aligned

    __device__ Loader(const AdapterOperands<T, X>& all, std::int64_t row)
        : operands(all), first_row(row), down(all.down, 0, 0), down_gates(all.down_gates, 0, 0), up(all.up, 0, 0),
          up_gates(all.up_gates, 0, 0), x(all.x, row, 0),
          whole(all.x_aligned && all.down_aligned && all.up_aligned && all.down_gates.words && all.up_gates.words &&
                all.down.rows == Tile::hidden && row + Tile::rows <= all.x.rows) {}

    __device__ __forceinline__ void load(const Place& place, std::int64_t column, bool first) const {
        constexpr bool same = std::is_same_v<T, X>;
        if (whole && column + panel_columns <= operands.x.columns) {
            if (first != backward) {
                down.load(place.a, column * sizeof(T));
                down_gates.load(place.gates, column / gates_of_byte);
            } else {
                up.load(place.a, column * Tile::hidden * sizeof(T));
                up_gates.load(place.gates, column * (Tile::hidden / gates_of_byte));
            }
            if constexpr (same) x.load(place.b, column * sizeof(T));
        } else {
            if (first != backward) {
                load_any<T, Tile::hidden, panel_columns, threads>(place.a, operands.down, operands.down_aligned, 0, column);
                load_gates<Tile::hidden, panel_words, threads>(place.gates, operands.down_gates, 0, column);
            } else {
                load_any<T, panel_columns, Tile::hidden, threads>(place.a, operands.up, operands.up_aligned, column, 0);
                load_gates<panel_columns, Tile::hidden_words, threads>(place.gates, operands.up_gates, column, 0);
            }
            if constexpr (same) {
                load_any<T, Tile::rows, panel_columns, threads>(place.b, operands.x, operands.x_aligned, first_row, column);
            }
        }
        if constexpr (!same) {
            if (first) load_any<T, Tile::rows, panel_columns, threads>(place.b, operands.x, operands.x_aligned, first_row, column);
        }
    }
};

}  // namespace tss
