// One block's share of a product on tensor cores: operand A masked in registers, operand B activations in shared memory,
// both loaded by a ring of asynchronous copies. Everything is computed transposed, d (m x n) = A (m x k) B (k x n) with
// n running along rows of the activations, so that the masked weight is operand A.
#pragma once

#include "cuda/tile.cuh"

namespace tss {

constexpr int k_tile = panel_columns;
constexpr int k_step = 16;  // k of one instruction

// The tile of a block (m x n), its division among warps, and the number of stages of the ring of k tiles. With
// Warpgroups, four warps together compute 64 m and all n.
template <int M, int N, int WarpsM, int WarpsN, int Stages, bool Warpgroups = false>
struct ProductTile {
    static constexpr int m = M, n = N, stages = Stages;
    static constexpr bool warpgroups = Warpgroups;
    static constexpr int warps = WarpsM * WarpsN, threads = warps * warp_size;
    static constexpr int warp_m = M / WarpsM, warp_n = N / WarpsN;
    static constexpr int pieces_m = Warpgroups ? 1 : warp_m / 16, pieces_n = Warpgroups ? N / 8 : warp_n / 8;
    static_assert(!Warpgroups || (N == 128 && M == 16 * warps), "a warpgroup takes 64 x 128");

    // Start of this warp's piece.
    __device__ static int first_m() { return Warpgroups ? threadIdx.x / warp_size * 16 : threadIdx.x / warp_size / WarpsN * warp_m; }
    __device__ static int first_n() { return Warpgroups ? 0 : threadIdx.x / warp_size % WarpsN * warp_n; }
};

// The sums of one warp: pieces of 16 x 8, of which each lane holds four elements.
template <class Tile>
struct Sums {
    float values[Tile::pieces_m][Tile::pieces_n * 4];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < Tile::pieces_m; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::pieces_n * 4; ++j) values[i][j] = 0.0f;
        }
    }

    __device__ void add(const Sums& others) {
#pragma unroll
        for (int i = 0; i < Tile::pieces_m; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::pieces_n * 4; ++j) values[i][j] += others.values[i][j];
        }
    }

    // Call use(m, n, value) with positions in the block's tile.
    template <class Use>
    __device__ void each(Use use) const {
        const int lane = threadIdx.x % warp_size, m = Tile::first_m() + lane / 4, n = Tile::first_n() + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < Tile::pieces_m; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::pieces_n * 4; ++j) use(m + 16 * i + 8 * (j % 4 / 2), n + 8 * (j / 4) + j % 2, values[i][j]);
        }
    }
};

// Layout of a k tile of A in shared memory, and its gates.
enum class Operand { weight, weight_transposed, plain_transposed };

template <class Tile, Operand operand>
struct Stage {
    static constexpr bool transposed = operand != Operand::weight;
    static constexpr int a_rows = transposed ? k_tile : Tile::m;
    static constexpr int words_of_row = transposed ? Tile::m / word_gates : k_tile / word_gates;
    static constexpr int a_bytes = Tile::m * k_tile * 2, b_bytes = Tile::n * k_tile * 2;
    static constexpr int gate_words = operand == Operand::plain_transposed ? 0 : a_rows * words_of_row;
    static constexpr int bytes = a_bytes + b_bytes;

    char* a;
    char* b;
    unsigned* gates;

    // The gates of all stages come after all tiles, which must start on boundaries of 1,024 bytes.
    __device__ Stage(char* memory, int number)
        : a(memory + number * bytes), b(a + a_bytes),
          gates(reinterpret_cast<unsigned*>(memory + Tile::stages * bytes) + number * gate_words) {}

    static constexpr std::size_t shared_bytes() { return std::size_t(Tile::stages) * (bytes + 4 * gate_words); }
};

template <class Tile, Operand operand>
__device__ __forceinline__ void load_masked_a(unsigned (&a)[4], const Stage<Tile, operand>& stage, int m, int k) {
    using S = Stage<Tile, operand>;
    if constexpr (operand == Operand::weight) {
        load_a<S::a_rows>(a, stage.a, m, k);
        mask_a<S::words_of_row>(a, stage.gates, m, k);
    } else {
        load_a_transposed<S::a_rows>(a, stage.a, m, k);
        if constexpr (operand == Operand::weight_transposed) mask_a_transposed<S::words_of_row>(a, stage.gates, m, k);
    }
}

// Add the products of this warp's pieces of A with two neighbouring pieces of B, j and j + 1.
template <class T, class Tile>
__device__ __forceinline__ void add_products(Sums<Tile>& sums, const unsigned (&a)[Tile::pieces_m][4], int j, const unsigned (&b)[4]) {
#pragma unroll
    for (int i = 0; i < Tile::pieces_m; ++i) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            float(&d)[4] = *reinterpret_cast<float(*)[4]>(&sums.values[i][4 * (j + pair)]);
            multiply_16816<T>(d, a[i], *reinterpret_cast<const unsigned(*)[2]>(&b[2 * pair]));
        }
    }
}

// Add the product of one k tile. b_transposed: the rows of B's tile are k.
template <class T, class Tile, Operand operand, bool b_transposed>
__device__ __forceinline__ void multiply(Sums<Tile>& sums, const Stage<Tile, operand>& stage) {
    if constexpr (Tile::warpgroups) {
#if defined(TSS_EMULATED) || defined(TSS_HAS_WARPGROUPS)
        static_assert(!b_transposed, "the descriptor is of rows along k");
        unsigned a[k_tile / k_step][4];
#pragma unroll
        for (int step = 0; step < k_tile / k_step; ++step) load_masked_a(a[step], stage, Tile::first_m(), step * k_step);
        warpgroup_arrive();
#pragma unroll
        for (int step = 0; step < k_tile / k_step; ++step) {
            // Sixteen elements further along k are 32 bytes in every row.
            warpgroup_multiply<T, Tile::n>(sums.values[0], a[step], shared_descriptor(stage.b + step * k_step * 2));
        }
        warpgroup_commit();
        warpgroup_wait<0>();
#endif
    } else {
#pragma unroll
        for (int k = 0; k < k_tile; k += k_step) {
            unsigned a[Tile::pieces_m][4];
#pragma unroll
            for (int i = 0; i < Tile::pieces_m; ++i) load_masked_a(a[i], stage, Tile::first_m() + 16 * i, k);
#pragma unroll
            for (int j = 0; j < Tile::pieces_n; j += 2) {
                unsigned b[4];
                if constexpr (b_transposed) load_b_transposed<k_tile>(b, stage.b, Tile::first_n() + 8 * j, k);
                else load_b<Tile::n>(b, stage.b, Tile::first_n() + 8 * j, k);
                add_products<T>(sums, a, j, b);
            }
        }
    }
}

// A ring of tiles: `load(place, tile)` runs ahead of a tile's use by the depth of the ring. start_ring loads the tiles
// that fill it.
template <int stages, class Load>
__device__ __forceinline__ void start_ring(int tiles, const Load& load) {
#pragma unroll
    for (int tile = 0; tile < stages - 1; ++tile) {
        if (tile < tiles) load(tile, tile);
        commit_copies();
    }
}

// For each tile in turn: wait for it, and load the tile that replaces the previous one. On entry `place` is the place
// of the previous tile, on return that of this one.
template <int stages, bool for_warpgroups, class Load>
__device__ __forceinline__ void turn_ring(int& place, int tile, int tiles, const Load& load) {
    wait_for_copies<stages - 2>();
#if defined(TSS_EMULATED) || defined(TSS_HAS_WARPGROUPS)
    if constexpr (for_warpgroups) fence_shared_for_warpgroup();
#endif
    __syncthreads();  // the tile is there for all, and all are done with the one before
    const int next = tile + stages - 1;
    if (next < tiles) load(place, next);
    commit_copies();
    place = place == stages - 1 ? 0 : place + 1;
}

// Sum over the k tiles that `load(stage, k tile)` loads. A barrier follows the last use of the ring, which is free
// again when any thread returns.
template <class T, class Tile, Operand operand, bool b_transposed, class Load>
__device__ __forceinline__ void accumulate(Sums<Tile>& sums, char* memory, std::int64_t k_tiles, const Load& load) {
    using S = Stage<Tile, operand>;
    const auto bring = [&](int place, int tile) { load(S(memory, place), tile); };
    const int tiles = static_cast<int>(k_tiles);
    start_ring<Tile::stages>(tiles, bring);
    int place = Tile::stages - 1;
    for (int tile = 0; tile < tiles; ++tile) {
        turn_ring<Tile::stages, Tile::warpgroups>(place, tile, tiles, bring);
        multiply<T, Tile, operand, b_transposed>(sums, S(memory, place));
    }
    wait_for_copies<0>();
    __syncthreads();
}

// Write the block's tile, transposed back, to a contiguous matrix of `columns` columns: d (m, n) is row n, column m;
// plus the bias of its column, if there is one. It goes through shared memory, so that neighbouring threads write
// neighbouring elements, 16 bytes each where `wide` allows it.
template <class T, class Tile>
__device__ __forceinline__ void store_transposed(const Sums<Tile>& sums, char* memory, T* out, std::int64_t first_row,
                                                 std::int64_t rows, std::int64_t first_column, std::int64_t columns, bool wide,
                                                 const T* bias) {
    constexpr int pitch = Tile::m + chunk_elements;  // one chunk more than a multiple of all banks
    T* staged = reinterpret_cast<T*>(memory);
    const int lane = threadIdx.x % warp_size;
    // The lane's row of the four matrices that are stored at once: 16 columns of 16 rows.
    T* lane_row = staged + (Tile::first_n() + lane / 16 * 8 + lane % 8) * pitch + Tile::first_m() + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < Tile::pieces_m; ++i) {
        float added[2];
#pragma unroll
        for (int below = 0; below < 2; ++below) {
            const std::int64_t column = first_column + Tile::first_m() + 16 * i + 8 * below + lane / 4;
            // Without a bias, -0 is added, which changes nothing; adding 0 would turn -0 into 0.
            added[below] = bias != nullptr && column < columns ? to_float(bias[column]) : -0.0f;
        }
#pragma unroll
        for (int j = 0; j < Tile::pieces_n; j += 2) {
            unsigned made[4];
#pragma unroll
            for (int matrix = 0; matrix < 4; ++matrix) {
                const float* two = &sums.values[i][4 * j + 2 * matrix];
                made[matrix] = rounded_pair<T>(two[0] + added[matrix % 2], two[1] + added[matrix % 2]);
            }
            store_matrices_transposed(lane_row + 8 * j * pitch + 16 * i, made);
        }
    }
    __syncthreads();
    constexpr int chunks_of_row = Tile::m / chunk_elements;
    for (int chunk = threadIdx.x; chunk < Tile::n * chunks_of_row; chunk += Tile::threads) {
        const int n = chunk / chunks_of_row, m = chunk % chunks_of_row * chunk_elements;
        const std::int64_t row = first_row + n, column = first_column + m;
        if (row >= rows || column >= columns) continue;
        T* target = out + row * columns + column;
        const T* from = staged + n * pitch + m;
        if (wide && column + chunk_elements <= columns) {
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(from);
        } else {
            for (int i = 0; i < chunk_elements && column + i < columns; ++i) target[i] = from[i];
        }
    }
}

template <class Tile>
constexpr std::size_t staged_bytes() {
    return std::size_t(Tile::n) * (Tile::m + chunk_elements) * 2;
}

}  // namespace tss
