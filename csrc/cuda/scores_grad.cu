// Launches of the score gradient: the division of rows into ranges depends on shapes only.
#include "cuda/scores_grad.cuh"

#include "cuda/operations.h"

namespace tss {
namespace {

using Across = ProductTile<64, 128, 1, 4, 3>;
using Down = ProductTile<128, 64, 2, 2, 3>;
using General = ProductTile<64, 64, 2, 2, 2>;

constexpr int reduce_threads = 256;

__global__ void __launch_bounds__(float32_threads)
    scores_grad_float32_kernel(const __grid_constant__ ScoresGradOperands<float> operands) {
    const std::int64_t out_features = operands.dy.columns, in_features = operands.x.columns;
    const std::int64_t in_blocks = divide_up(in_features, float32_tile);
    const std::int64_t blocks = divide_up(out_features, float32_tile) * in_blocks;
    const std::int64_t range = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const std::int64_t first_out = block / in_blocks * float32_tile, first_in = block % in_blocks * float32_tile;
    const std::int64_t first_row = range * operands.range_rows;
    const auto element = [](const View<float>& view, std::int64_t row, std::int64_t column) {
        return column < view.columns ? view.data[row * view.row_stride + column * view.column_stride] : 0.0f;
    };
    float sums[float32_share][float32_share];
    multiply_float32(
        sums, first_out, first_in, first_row, min(operands.dy.rows, first_row + operands.range_rows),
        [&](std::int64_t out, std::int64_t row) { return element(operands.dy, row, out); },
        [&](std::int64_t row, std::int64_t in) { return element(operands.x, row, in); });
    each_float32(sums, first_out, first_in, out_features, in_features, [&](std::int64_t out, std::int64_t in, float sum) {
        const std::int64_t at = out * in_features + in;
        if (operands.partial != nullptr) operands.partial[range * out_features * in_features + at] = sum;
        else operands.grad[at] = finished(sum, operands.weight, operands.importance, at);
    });
}

template <class T>
__global__ void __launch_bounds__(reduce_threads)
    reduce_kernel(const float* partial, std::int64_t ranges, std::int64_t elements, const T* weight, const float* importance, float* grad) {
    const std::int64_t at = std::int64_t(blockIdx.x) * reduce_threads + threadIdx.x;
    if (at >= elements) return;
    float sum = partial[at];
    for (std::int64_t range = 1; range < ranges; ++range) sum += partial[range * elements + at];
    grad[at] = finished(sum, weight, importance, at);
}

template <class T>
void scores_grad_of(const ScoresGradArguments& arguments, Target target) {
    const std::int64_t ranges = max(std::int64_t(1), divide_up(arguments.rows, arguments.range_rows));
    const std::int64_t out = arguments.out_features, in = arguments.in_features;
    const View<T> dy{static_cast<const T*>(arguments.dy), arguments.rows, out, arguments.dy_row_stride, arguments.dy_column_stride};
    const View<T> x{static_cast<const T*>(arguments.x), arguments.rows, in, arguments.x_row_stride, arguments.x_column_stride};
    const ScoresGradOperands<T> operands{
        dy, x, static_cast<const T*>(arguments.weight), arguments.importance, arguments.grad, ranges > 1 ? arguments.partial : nullptr,
        arguments.range_rows,
    };
    const auto run = [&](auto kernel, int m, int n, int threads, std::size_t bytes) {
        launch(kernel, divide_up(out, m) * divide_up(in, n) * ranges, threads, bytes, target, operands);
    };
    if constexpr (std::is_same_v<T, float>) {
        run(scores_grad_float32_kernel, float32_tile, float32_tile, float32_threads, float32_shared_bytes);
    } else {
        const auto of = [&](auto tile, auto aligned) {
            using Tile = decltype(tile);
            run(scores_grad_kernel<T, Tile, decltype(aligned)::value>, Tile::m, Tile::n, Tile::threads,
                Stage<Tile, Operand::plain_transposed>::shared_bytes());
        };
        if (!rows_start_evenly(dy) || !rows_start_evenly(x)) of(General(), std::false_type());
        else if (out > in) of(Down(), std::true_type());
        else of(Across(), std::true_type());
    }
    if (ranges > 1) {
        launch(reduce_kernel<T>, divide_up(out * in, reduce_threads), reduce_threads, 0, target, arguments.partial, ranges, out * in,
               operands.weight, arguments.importance, arguments.grad);
    }
}

}  // namespace

std::int64_t scores_grad_range_rows(std::int64_t rows, std::int64_t out_features, std::int64_t in_features) {
    constexpr std::int64_t enough_blocks = 132, most_ranges = 64, least_rows = 256;
    const std::int64_t blocks = divide_up(out_features, 64) * divide_up(in_features, 128);
    std::int64_t ranges = 1;
    while (ranges < most_ranges && blocks * ranges < enough_blocks && rows >= 2 * ranges * least_rows) ranges *= 2;
    return max(std::int64_t(k_tile), divide_up(divide_up(rows, ranges), k_tile) * k_tile);
}

std::vector<SharedBytes> scores_grad_shared_bytes() {
    return {{"scores_grad across", Stage<Across, Operand::plain_transposed>::shared_bytes()},
            {"scores_grad down", Stage<Down, Operand::plain_transposed>::shared_bytes()},
            {"scores_grad general", Stage<General, Operand::plain_transposed>::shared_bytes()},
            {"float32", float32_shared_bytes}};
}

void scores_grad(const ScoresGradArguments& arguments, Dtype dtype, Target target) {
    if (dtype == Dtype::float32) return scores_grad_of<float>(arguments, target);
    if (dtype == Dtype::float16) return scores_grad_of<float16>(arguments, target);
    scores_grad_of<bfloat16>(arguments, target);
}

}  // namespace tss
