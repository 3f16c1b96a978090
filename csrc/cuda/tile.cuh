// Tiles of 16-bit elements in shared memory, and the operands that tensor cores load from them.
//
// A tile is cut into panels of 64 columns. A row of a panel is 128 bytes, whose eight chunks of 16 bytes are stored in
// an order that depends on the row, so that eight rows of one column, or eight chunks of one row, never share a memory
// bank. It is also the layout that Hopper's warpgroup instructions read by descriptor.
#pragma once

#include "cuda/gates.cuh"

namespace tss {

constexpr int panel_columns = 64;
constexpr int panel_row_bytes = 128;
constexpr int chunk_elements = 8;  // 16 bytes
constexpr int word_gates = 32;

// Return the bytes from a panel's start to the chunk of eight elements that starts at this column.
__device__ __forceinline__ int chunk_offset(int row, int column) {
    return row * panel_row_bytes + ((column / chunk_elements ^ (row & 7)) * 16);
}

// The same for a tile of several panels, each with `rows` rows.
template <int rows>
__device__ __forceinline__ int tile_offset(int row, int column) {
    return column / panel_columns * (rows * panel_row_bytes) + chunk_offset(row, column % panel_columns);
}

// A matrix in global memory with any strides, in elements.
template <class T>
struct View {
    const T* data;
    std::int64_t rows, columns, row_stride, column_stride;
};

// Whether 16 bytes can be moved at once everywhere.
template <class T>
bool rows_start_evenly(const View<T>& view) {
    constexpr std::int64_t elements = 16 / sizeof(T);
    return view.column_stride == 1 && view.row_stride % elements == 0 && starts_evenly(view.data);
}

// Read eight neighbours of a row, of which `valid` are inside the matrix; the others are 0.
template <bool aligned, class T>
__device__ __forceinline__ void load_chunk(char* target, const View<T>& view, const T* from, int valid) {
    if constexpr (aligned) {
        copy_async_16(target, valid > 0 ? from : view.data, static_cast<unsigned>(valid * sizeof(T)));
    } else {
        alignas(16) T values[chunk_elements];
#pragma unroll
        for (int i = 0; i < chunk_elements; ++i) values[i] = i < valid ? from[i * view.column_stride] : from_float<T>(0.0f);
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(values);
    }
}

// Read a tile of rows x columns from (first_row, first_column) on; elements outside the matrix are 0. With `aligned`
// (columns contiguous, every row on a boundary of 16 bytes) by asynchronous copies, which the caller commits; else each
// element by itself.
template <int rows, int columns, int threads, bool aligned, class T>
__device__ __forceinline__ void load_tile(char* tile, const View<T>& view, std::int64_t first_row, std::int64_t first_column) {
    constexpr int chunks_of_row = columns / chunk_elements, rows_at_once = threads / chunks_of_row;
    static_assert(threads % chunks_of_row == 0 && rows_at_once % 8 == 0, "a thread stays in its column, and its swizzle with it");
    const int first = threadIdx.x / chunks_of_row, column = threadIdx.x % chunks_of_row * chunk_elements;
    char* target = tile + tile_offset<rows>(first, column);
    const std::int64_t from_column = first_column + column, step = rows_at_once * view.row_stride;
    const T* from = view.data + (first_row + first) * view.row_stride + from_column * view.column_stride;
    const std::int64_t columns_left = min(std::int64_t(chunk_elements), max(std::int64_t(0), view.columns - from_column));
    const int rows_left = static_cast<int>(min(std::int64_t(rows), view.rows - first_row));
#pragma unroll
    for (int row = first; row < rows; row += rows_at_once) {
        const int valid = row < rows_left ? static_cast<int>(columns_left) : 0;
        load_chunk<aligned>(target, view, from, valid);
        from += step;
        target += rows_at_once * panel_row_bytes;
    }
}

// A thread's chunks of tiles that are inside their matrix, with contiguous columns and rows on boundaries of 16 bytes.
// Their start is computed once for a block, and no bounds are checked per chunk: in a loop over tiles such arithmetic
// would be most of what is executed.
template <int rows, int columns, int threads>
struct WholeTiles {
    static constexpr int chunks_of_row = columns / chunk_elements, rows_at_once = threads / chunks_of_row;
    static_assert(threads % chunks_of_row == 0 && rows_at_once % 8 == 0 && rows % rows_at_once == 0, "all threads copy alike");
    const char* from;
    std::int64_t step;  // bytes from a chunk to the next

    template <class T>
    __device__ WholeTiles(const View<T>& view, std::int64_t first_row, std::int64_t first_column)
        : from(reinterpret_cast<const char*>(view.data + (first_row + threadIdx.x / chunks_of_row) * view.row_stride + first_column +
                                             threadIdx.x % chunks_of_row * chunk_elements)),
          step(rows_at_once * view.row_stride * std::int64_t(sizeof(T))) {}

    // Copy the tile that is `further` bytes further on in the matrix; the caller commits.
    __device__ __forceinline__ void load(char* tile, std::int64_t further) const {
        char* target = tile + tile_offset<rows>(threadIdx.x / chunks_of_row, threadIdx.x % chunks_of_row * chunk_elements);
        const char* chunk = from + further;
#pragma unroll
        for (int i = 0; i < rows / rows_at_once; ++i) {
            copy_async_16(target + i * rows_at_once * panel_row_bytes, chunk);
            chunk += step;
        }
    }
};

// Packed gates (rows, row_bytes); `words`: every row starts on a boundary of 4 bytes and consists of whole words.
struct GateBits {
    const std::uint8_t* packed;
    std::int64_t rows, row_bytes;
    bool words;
};

// The gates of a matrix (rows, columns), contiguous.
__host__ __device__ inline GateBits bits_at(const std::uint8_t* packed, std::int64_t rows, std::int64_t columns) {
    const std::int64_t row_bytes = divide_up(columns, gates_of_byte);
    return {packed, rows, row_bytes, row_bytes % 4 == 0 && starts_evenly(packed, 4)};
}

// Read the words of rows x (32 words_of_row) gates, first_column a multiple of 32; gates outside the matrix are off.
template <int rows, int words_of_row, int threads>
__device__ __forceinline__ void load_gates(unsigned* tile, const GateBits& gates, std::int64_t first_row, std::int64_t first_column) {
    for (int word = threadIdx.x; word < rows * words_of_row; word += threads) {
        const std::int64_t row = first_row + word / words_of_row;
        const std::int64_t byte = first_column / gates_of_byte + word % words_of_row * 4;
        const std::int64_t left = row < gates.rows ? gates.row_bytes - byte : 0;
        const int valid = static_cast<int>(left < 0 ? 0 : left < 4 ? left : 4);
        const std::uint8_t* from = gates.packed + (valid > 0 ? row * gates.row_bytes + byte : 0);
        if (gates.words) {
            copy_async_4(tile + word, from, static_cast<unsigned>(valid));
        } else {
            unsigned bits = 0;
#pragma unroll 1
            for (int i = 0; i < valid; ++i) bits |= unsigned(from[i]) << (8 * i);
            tile[word] = bits;
        }
    }
}

// The same as WholeTiles for words of gates inside their matrix, whose rows consist of whole words.
template <int rows, int words_of_row, int threads>
struct WholeGates {
    static_assert(threads % words_of_row == 0, "a thread stays in its column");
    const std::uint8_t* from;
    std::int64_t row_bytes;

    __device__ WholeGates(const GateBits& gates, std::int64_t first_row, std::int64_t first_column)
        : from(gates.packed + (first_row + threadIdx.x / words_of_row) * gates.row_bytes + first_column / gates_of_byte +
               threadIdx.x % words_of_row * 4),
          row_bytes(gates.row_bytes) {}

    __device__ __forceinline__ void load(unsigned* tile, std::int64_t further) const {
        const std::uint8_t* word = from + further;
#pragma unroll
        for (int at = 0; at < rows * words_of_row; at += threads) {
            if (at + threads <= rows * words_of_row || at + static_cast<int>(threadIdx.x) < rows * words_of_row) {
                copy_async_4(tile + at + threadIdx.x, word);
            }
            word += threads / words_of_row * row_bytes;
        }
    }
};

// Compare scores (contiguous, float32) of the same range instead; a warp makes one word at a time. With `packed`, the
// gates are also written there, in rows of row_bytes.
template <int rows, int words_of_row, int threads>
__device__ __forceinline__ void compare_scores(unsigned* tile, const View<float>& scores, float threshold, std::int64_t first_row,
                                               std::int64_t first_column, std::uint8_t* packed) {
    const int lane = threadIdx.x % warp_size;
#pragma unroll 2
    for (int word = threadIdx.x / warp_size; word < rows * words_of_row; word += threads / warp_size) {
        const std::int64_t row = first_row + word / words_of_row;
        const std::int64_t start = first_column + word % words_of_row * word_gates, column = start + lane;
        const bool inside = row < scores.rows && column < scores.columns;
        const unsigned bits = __ballot_sync(whole_warp, inside && scores.data[row * scores.row_stride + column] >= threshold);
        if (lane == 0) tile[word] = bits;
        const std::int64_t row_bytes = divide_up(scores.columns, gates_of_byte), byte = start / gates_of_byte + lane;
        if (packed != nullptr && lane < 4 && row < scores.rows && byte < row_bytes) {
            packed[row * row_bytes + byte] = static_cast<std::uint8_t>(bits >> (8 * lane));
        }
    }
}

// Return the bytes to a chunk that a lane reads: at (row, column), multiples of 8 and 16, plus the lane's own position
// in 16 x 16. The lane's part does not change from piece to piece.
template <int rows>
__device__ __forceinline__ int piece_offset(int row, int column, int lane_row, int lane_column) {
    const int lane_part = chunk_offset(lane_row, lane_column);
    const int panel = column / panel_columns * (rows * panel_row_bytes);
    return panel + row * panel_row_bytes + (lane_part ^ column % panel_columns / chunk_elements * 16);
}

// Load a 16 x 16 piece of operand A from a tile whose rows are the rows of A.
template <int rows>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const char* tile, int m, int k) {
    const int lane = threadIdx.x % warp_size;
    load_matrices<false>(a, tile + piece_offset<rows>(m, k, lane % 16, lane / 16 * 8));
}

// The same from a tile whose rows are k and whose columns are the rows of A.
template <int rows>
__device__ __forceinline__ void load_a_transposed(unsigned (&a)[4], const char* tile, int m, int k) {
    const int lane = threadIdx.x % warp_size;
    load_matrices<true>(a, tile + piece_offset<rows>(k, m, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
}

// Load two neighbouring 16 x 8 pieces of operand B from a tile whose rows are the columns of B (k contiguous).
template <int rows>
__device__ __forceinline__ void load_b(unsigned (&b)[4], const char* tile, int n, int k) {
    const int lane = threadIdx.x % warp_size;
    load_matrices<false>(b, tile + piece_offset<rows>(n, k, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
}

// The same from a tile whose rows are k.
template <int rows>
__device__ __forceinline__ void load_b_transposed(unsigned (&b)[4], const char* tile, int n, int k) {
    const int lane = threadIdx.x % warp_size;
    load_matrices<true>(b, tile + piece_offset<rows>(k, n, lane % 16, lane / 16 * 8));
}

// Mask a piece of A (from load_a at m, k) with the gates [m][k]: a weight stays as it is or becomes 0. The gates of a
// lane's two neighbouring elements are moved to the sign bits of all bytes of a word.
template <int words_of_row>
__device__ __forceinline__ void mask_a(unsigned (&a)[4], const unsigned* gates, int m, int k) {
    const int lane = threadIdx.x % warp_size, shift = 6 - 2 * (lane % 4), byte = k % word_gates / 8;
    const unsigned* row = gates + (m + lane / 4) * words_of_row + k / word_gates;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // m and m + 8
        const unsigned upper = row[8 * half * words_of_row] << shift, lower = upper << 1;
        a[half] &= mask_of_signs(lower, upper, byte);
        a[half + 2] &= mask_of_signs(lower, upper, byte + 1);
    }
}

// The same for load_a_transposed: gates [k][m].
template <int words_of_row>
__device__ __forceinline__ void mask_a_transposed(unsigned (&a)[4], const unsigned* gates, int m, int k) {
    const int lane = threadIdx.x % warp_size, shift = 7 - lane / 4, byte = m % word_gates / 8;
    const unsigned* row = gates + (k + 2 * (lane % 4)) * words_of_row + m / word_gates;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // k and k + 8
        const unsigned lower = row[8 * half * words_of_row] << shift, upper = row[(8 * half + 1) * words_of_row] << shift;
        a[2 * half] &= mask_of_signs(lower, upper, byte);
        a[2 * half + 1] &= mask_of_signs(lower, upper, byte + 1);
    }
}

}  // namespace tss
