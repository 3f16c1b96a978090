#include "cuda/float32_product.cuh"

namespace tss {
namespace {

// Compute rows x features of the result; from_scores: gates are compared, and packed by the blocks of the first rows.
template <bool transposed, bool from_scores>
__global__ void __launch_bounds__(float32_threads) gated_float32_kernel(const __grid_constant__ ProductArguments p) {
    const auto* activations = static_cast<const float*>(p.activations);
    const auto* weight = static_cast<const float*>(p.weight);
    const std::int64_t features = transposed ? p.in_features : p.out_features;
    const std::int64_t depth = transposed ? p.out_features : p.in_features;
    const std::int64_t feature_blocks = divide_up(features, float32_tile);
    const std::int64_t first_row = blockIdx.x / feature_blocks * float32_tile;
    const std::int64_t first_feature = blockIdx.x % feature_blocks * float32_tile;
    const std::int64_t row_bytes = divide_up(p.in_features, gates_of_byte);
    const auto activation = [&](std::int64_t row, std::int64_t k) {
        return row < p.rows ? activations[row * p.row_stride + k * p.column_stride] : 0.0f;
    };
    const auto masked = [&](std::int64_t k, std::int64_t feature) {
        if (feature >= features) return 0.0f;
        const std::int64_t out = transposed ? k : feature, in = transposed ? feature : k, at = out * p.in_features + in;
        const bool on = from_scores ? p.scores[at] >= p.threshold
                                    : (p.packed[out * row_bytes + in / gates_of_byte] >> (in % gates_of_byte) & 1) != 0;
        return on ? weight[at] : 0.0f;
    };
    float sums[float32_share][float32_share];
    multiply_float32(sums, first_row, first_feature, 0, depth, activation, masked);
    each_float32(sums, first_row, first_feature, p.rows, features, [&](std::int64_t row, std::int64_t feature, float sum) {
        const float bias = p.bias == nullptr ? 0.0f : static_cast<const float*>(p.bias)[feature];
        static_cast<float*>(p.result)[row * features + feature] = p.bias == nullptr ? sum : sum + bias;
    });
    if (from_scores && first_row == 0) {
        const std::int64_t outs = min(std::int64_t(float32_tile), features - first_feature);
        for (std::int64_t byte = threadIdx.x; byte < outs * row_bytes; byte += float32_threads) {
            const std::int64_t out = first_feature + byte / row_bytes, column = byte % row_bytes * gates_of_byte;
            unsigned bits = 0;
            for (int i = 0; i < gates_of_byte && column + i < p.in_features; ++i) {
                bits |= unsigned(p.scores[out * p.in_features + column + i] >= p.threshold) << i;
            }
            p.packed[out * row_bytes + column / gates_of_byte] = static_cast<std::uint8_t>(bits);
        }
    }
}

}  // namespace

void gated_product_float32(const ProductArguments& arguments, Target target) {
    const std::int64_t features = arguments.transposed ? arguments.in_features : arguments.out_features;
    const bool from_scores = arguments.scores != nullptr;
    const std::int64_t rows = from_scores ? max(std::int64_t(1), arguments.rows) : arguments.rows;
    const std::int64_t blocks = divide_up(features, float32_tile) * divide_up(rows, float32_tile);
    const auto kernel = arguments.transposed ? gated_float32_kernel<true, false>
                        : from_scores        ? gated_float32_kernel<false, true>
                                             : gated_float32_kernel<false, false>;
    launch(kernel, blocks, float32_threads, float32_shared_bytes, target, arguments);
}

}  // namespace tss
