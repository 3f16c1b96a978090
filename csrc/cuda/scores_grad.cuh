// The straight-through gradient of the scores: (dyᵀ x) * W * (1 - I). Rows are summed in ranges, the ranges in order.
#pragma once

#include "cuda/float32_product.cuh"
#include "cuda/product.cuh"

namespace tss {

// Weight and importance (out, in) contiguous; the gradient float32 (out, in). With more than one range, sums go to
// `partial`, float32 (ranges, out, in), and a second kernel adds them.
template <class T>
struct ScoresGradOperands {
    View<T> dy, x;
    const T* weight;
    const float* importance;
    float* grad;
    float* partial;
    std::int64_t range_rows;
};

// Return the sum times the weight, then times 1 - importance, each product rounded as in the reference.
template <class T>
__device__ __forceinline__ float finished(float sum, const T* weight, const float* importance, std::int64_t at) {
    const float grad = sum * to_float(weight[at]);
    return importance == nullptr ? grad : grad * (1.0f - importance[at]);
}

// Tensor cores truncate what they add instead of rounding it: the errors of a sum all pull it one way and grow with its
// length. Sums of this many k tiles are therefore added in float32, which rounds: by the model of csrc/emulator, the
// error with 128 rows is up to 1.5 times that of PyTorch's float32 product of 1,000 to 16,384 rows, with 256 up to 2.6
// and with 1,024 up to 10 times.
constexpr int cut_tiles = 128 / k_tile;

template <class T, class Tile, bool aligned>
__global__ void __launch_bounds__(Tile::threads, aligned ? 2 : 4) scores_grad_kernel(const __grid_constant__ ScoresGradOperands<T> operands) {
    using S = Stage<Tile, Operand::plain_transposed>;
    char* memory = dynamic_shared();
    const std::int64_t out_features = operands.dy.columns, in_features = operands.x.columns;
    const std::int64_t in_blocks = divide_up(in_features, Tile::n), blocks = divide_up(out_features, Tile::m) * in_blocks;
    const std::int64_t range = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const std::int64_t first_out = block / in_blocks * Tile::m, first_in = block % in_blocks * Tile::n;
    const std::int64_t first_row = range * operands.range_rows;
    View<T> dy = operands.dy, x = operands.x;
    dy.rows = x.rows = min(dy.rows, first_row + operands.range_rows);
    const std::int64_t rows = max(std::int64_t(0), dy.rows - first_row);
    const WholeTiles<k_tile, Tile::m, Tile::threads> whole_dy(dy, first_row, first_out);
    const WholeTiles<k_tile, Tile::n, Tile::threads> whole_x(x, first_row, first_in);
    const bool inside = first_out + Tile::m <= out_features && first_in + Tile::n <= in_features;
    const int whole = aligned && inside ? static_cast<int>(rows / k_tile) : 0;  // how many k tiles are inside both
    float* const place = operands.partial != nullptr ? operands.partial + range * out_features * in_features : operands.grad;
    const int tiles = static_cast<int>(divide_up(rows, k_tile));
    const auto bring = [&](int to, int tile) {
        const S stage(memory, to);
        const std::int64_t k = std::int64_t(tile) * k_tile;
        if (aligned && tile < whole) {
            whole_dy.load(stage.a, k * dy.row_stride * sizeof(T));
            whole_x.load(stage.b, k * x.row_stride * sizeof(T));
        } else {
            load_tile<k_tile, Tile::m, Tile::threads, aligned>(stage.a, dy, first_row + k, first_out);
            load_tile<k_tile, Tile::n, Tile::threads, aligned>(stage.b, x, first_row + k, first_in);
        }
    };
    start_ring<Tile::stages>(tiles, bring);
    Sums<Tile> total, sums;
    total.clear();
    sums.clear();
    int turned = Tile::stages - 1;
    for (int tile = 0; tile < tiles; ++tile) {
        turn_ring<Tile::stages, false>(turned, tile, tiles, bring);
        multiply<T, Tile, Operand::plain_transposed, true>(sums, S(memory, turned));
        if ((tile + 1) % cut_tiles == 0) {
            total.add(sums);
            sums.clear();
        }
    }
    total.add(sums);
    const std::int64_t from_out = not_before(first_out), from_in = not_before(first_in);
    total.each([&](int m, int n, float sum) {
        const std::int64_t out = from_out + m, in = from_in + n, at = out * in_features + in;
        if (out >= out_features || in >= in_features) return;
        place[at] = operands.partial != nullptr ? sum : finished(sum, operands.weight, operands.importance, at);
    });
    wait_for_copies<0>();
}

}  // namespace tss
