// The gated products of 16-bit types: y = x (W * g)ᵀ + b and dx = dy (W * g).
#pragma once

#include "cuda/product.cuh"

namespace tss {

// Operands of both products: `activations` is x or dy, `result` y or dx (contiguous), weight (out, in) contiguous.
template <class T>
struct ProductOperands {
    View<T> activations;
    const T* weight;
    std::int64_t out_features, in_features;
    GateBits gates;
    const float* scores;  // if given, compared in place of reading gates; forward only
    float threshold;
    std::uint8_t* packed;  // receives the compared gates
    const T* bias;
    T* result;
    bool wide;  // rows of the result start on boundaries of 16 bytes
    // If the summed dimension is cut into ranges, of range_tiles k tiles and range_blocks blocks each: the sums of each
    // range, float32 (ranges, rows, features), which a second kernel adds.
    float* partial = nullptr;
    std::int64_t range_tiles = 0;
    unsigned range_blocks = 0;
};

// Compute the sums of A, m features from first_feature on, over k in [first_k, last_k). `load_b(tile, further, k,
// is_whole)` loads the activations from k = first_k + further on; is_whole: the tile is one of the first `whole` k
// tiles, which are inside all matrices. Gates of scores that are compared go to `packed`.
template <class T, class Tile, bool transposed, bool from_scores, bool aligned, class LoadB>
__device__ __forceinline__ void accumulate_masked(Sums<Tile>& sums, char* memory, const ProductOperands<T>& operands,
                                                  std::int64_t first_feature, std::int64_t first_k, std::int64_t last_k, int whole,
                                                  std::uint8_t* packed, const LoadB& load_b) {
    constexpr Operand operand = transposed ? Operand::weight_transposed : Operand::weight;
    using S = Stage<Tile, operand>;
    const View<T> weight{operands.weight, operands.out_features, operands.in_features, operands.in_features, 1};
    const View<float> scores{operands.scores, operands.out_features, operands.in_features, operands.in_features, 1};
    constexpr int columns = transposed ? Tile::m : k_tile;
    const std::int64_t row = transposed ? 0 : first_feature, column = transposed ? first_feature : 0;
    const std::int64_t start_row = transposed ? first_k : row, start_column = transposed ? column : first_k;
    const WholeTiles<S::a_rows, columns, Tile::threads> whole_a(weight, start_row, start_column);
    const WholeGates<S::a_rows, S::words_of_row, Tile::threads> whole_gates(operands.gates, start_row, start_column);
    sums.clear();
    accumulate<T, Tile, operand, false>(sums, memory, divide_up(last_k - first_k, k_tile), [&](const S& stage, int tile) {
        const std::int64_t further = std::int64_t(tile) * k_tile, k = first_k + further;
        const std::int64_t k_row = transposed ? k : row, k_column = transposed ? column : k;
        if (aligned && tile < whole) {
            load_b(stage.b, further, k, std::true_type());
            whole_a.load(stage.a, (transposed ? further * operands.in_features : further) * sizeof(T));
            if constexpr (!from_scores) {
                whole_gates.load(stage.gates, transposed ? further * operands.gates.row_bytes : further / gates_of_byte);
            }
        } else {
            load_b(stage.b, further, k, std::false_type());
            load_tile<S::a_rows, columns, Tile::threads, aligned>(stage.a, weight, k_row, k_column);
            if constexpr (!from_scores) {
                load_gates<S::a_rows, S::words_of_row, Tile::threads>(stage.gates, operands.gates, k_row, k_column);
            }
        }
        if constexpr (from_scores) {
            compare_scores<S::a_rows, S::words_of_row, Tile::threads>(stage.gates, scores, operands.threshold, k_row, k_column,
                                                                      packed);
        }
    });
}

template <class T, class Tile, bool transposed, bool from_scores, bool aligned>
__global__ void __launch_bounds__(Tile::threads) gated_product_kernel(const __grid_constant__ ProductOperands<T> operands) {
#if defined(TSS_EMULATED) || defined(TSS_HAS_WARPGROUPS)
    constexpr bool compiled = true;
#else
    constexpr bool compiled = !Tile::warpgroups;
#endif
    if constexpr (compiled) {
        char* memory = dynamic_shared();
        const std::int64_t features = transposed ? operands.in_features : operands.out_features;
        const std::int64_t depth = transposed ? operands.out_features : operands.in_features;
        const std::int64_t column_blocks = divide_up(features, Tile::m);
        const bool ranges = operands.partial != nullptr;
        const unsigned range = ranges ? blockIdx.x / operands.range_blocks : 0, block = blockIdx.x - range * operands.range_blocks;
        // Blocks that read the same activations run close to each other in time.
        const std::int64_t first_feature = block % column_blocks * Tile::m;
        const std::int64_t first_row = block / column_blocks * Tile::n;
        const std::int64_t first_k = range * operands.range_tiles * k_tile;
        const std::int64_t last_k = ranges ? min(depth, first_k + operands.range_tiles * k_tile) : depth;
        std::uint8_t* packed = first_row == 0 ? operands.packed : nullptr;
        const WholeTiles<Tile::n, k_tile, Tile::threads> whole_b(operands.activations, first_row, first_k);
        const bool inside = first_row + Tile::n <= operands.activations.rows && first_feature + Tile::m <= features;
        // The number of k tiles that are inside all matrices.
        const int whole = aligned && inside && (from_scores || operands.gates.words) ? static_cast<int>((last_k - first_k) / k_tile) : 0;
        Sums<Tile> sums;
        accumulate_masked<T, Tile, transposed, from_scores, aligned>(
            sums, memory, operands, first_feature, first_k, last_k, whole, packed,
            [&](char* tile, std::int64_t further, std::int64_t k, auto is_whole) {
                if constexpr (decltype(is_whole)::value) whole_b.load(tile, further * sizeof(T));
                else load_tile<Tile::n, k_tile, Tile::threads, aligned>(tile, operands.activations, first_row, k);
            });
        if (ranges) {
            const std::int64_t rows = operands.activations.rows;
            float* const place = operands.partial + (range * rows + first_row) * features + first_feature;
            sums.each([&](int m, int n, float sum) {
                if (first_row + n < rows && first_feature + m < features) place[n * features + m] = sum;
            });
        } else {
            store_transposed<T>(sums, memory, operands.result, first_row, operands.activations.rows, first_feature, features,
                                operands.wide, operands.bias);
        }
    } else {
        __trap();  // a kernel that did nothing would leave whatever the result's memory held
    }
}

}  // namespace tss
