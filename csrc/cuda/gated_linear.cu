// Launches of the gated products, with one of a few tiles, which Python chooses by shape, and a general one for any
// strides.
#include "cuda/gated_linear.cuh"

#include "cuda/float32_product.cuh"
#include "cuda/operations.h"

namespace tss {
namespace {

// 64 sums per lane in all of them except the small ones, which spread few rows over many blocks.
using Small = ProductTile<64, 32, 2, 2, 3>;
using Narrow = ProductTile<64, 128, 1, 4, 3>;
using Wide = ProductTile<128, 128, 2, 4, 3>;
using General = ProductTile<64, 32, 2, 2, 2>;
// With Hopper's warpgroup instructions.
using NarrowGroups = ProductTile<64, 128, 4, 1, 3, true>;
using WideGroups = ProductTile<128, 128, 8, 1, 3, true>;

constexpr int sum_threads = 256;

// Add the ranges in order, and the bias of an element's column, if there is one.
template <class T>
__global__ void __launch_bounds__(sum_threads)
    sum_ranges_kernel(const float* partial, int ranges, std::int64_t elements, std::int64_t features, const T* bias, T* result) {
    const std::int64_t at = std::int64_t(blockIdx.x) * sum_threads + threadIdx.x;
    if (at >= elements) return;
    float sum = partial[at];
#pragma unroll 4
    for (int range = 1; range < ranges; ++range) sum += partial[range * elements + at];
    result[at] = from_float<T>(bias == nullptr ? sum : sum + to_float(bias[at % features]));
}

template <class T, class Tile, bool transposed, bool from_scores, bool aligned>
void run(ProductOperands<T> operands, Target target) {
    using S = Stage<Tile, transposed ? Operand::weight_transposed : Operand::weight>;
    const std::int64_t features = transposed ? operands.in_features : operands.out_features;
    // Even without rows, one row of blocks runs where gates are compared, to write them.
    const std::int64_t rows = from_scores ? max(std::int64_t(1), operands.activations.rows) : operands.activations.rows;
    const std::int64_t blocks = divide_up(features, Tile::m) * divide_up(rows, Tile::n);
    const std::int64_t k_tiles = divide_up(transposed ? operands.out_features : operands.in_features, k_tile);
    const std::int64_t ranges = operands.partial == nullptr ? 1 : divide_up(k_tiles, operands.range_tiles);
    operands.range_blocks = static_cast<unsigned>(blocks);
    launch(gated_product_kernel<T, Tile, transposed, from_scores, aligned>, blocks * ranges, Tile::threads,
           max(S::shared_bytes(), staged_bytes<Tile>()), target, operands);
    if (operands.partial == nullptr) return;
    const std::int64_t elements = operands.activations.rows * features;
    launch(sum_ranges_kernel<T>, divide_up(elements, sum_threads), sum_threads, 0, target, operands.partial,
           static_cast<int>(ranges), elements, features, operands.bias, operands.result);
}

template <class T, bool transposed>
void run_words(const ProductOperands<T>& operands, Tiling tiling, Target target) {
    switch (tiling) {
        case Tiling::general: return run<T, General, transposed, false, false>(operands, target);
        case Tiling::small: return run<T, Small, transposed, false, true>(operands, target);
        case Tiling::narrow: return run<T, Narrow, transposed, false, true>(operands, target);
        case Tiling::wide: return run<T, Wide, transposed, false, true>(operands, target);
        case Tiling::narrow_groups: return run<T, NarrowGroups, transposed, false, true>(operands, target);
        case Tiling::wide_groups: return run<T, WideGroups, transposed, false, true>(operands, target);
    }
}

template <class T>
void product(const ProductArguments& arguments, Target target) {
    const std::int64_t depth = arguments.transposed ? arguments.out_features : arguments.in_features;
    const std::int64_t features = arguments.transposed ? arguments.in_features : arguments.out_features;
    ProductOperands<T> operands{
        View<T>{static_cast<const T*>(arguments.activations), arguments.rows, depth, arguments.row_stride, arguments.column_stride},
        static_cast<const T*>(arguments.weight),
        arguments.out_features,
        arguments.in_features,
        bits_at(arguments.packed, arguments.out_features, arguments.in_features),
        arguments.scores,
        arguments.threshold,
        arguments.packed,
        static_cast<const T*>(arguments.bias),
        static_cast<T*>(arguments.result),
        features % chunk_elements == 0 && starts_evenly(arguments.result),
        arguments.partial,
        arguments.range_tiles,
    };
    if (arguments.transposed) return run_words<T, true>(operands, arguments.tiling, target);
    if (arguments.scores == nullptr) return run_words<T, false>(operands, arguments.tiling, target);
    if (arguments.tiling == Tiling::general) return run<T, General, false, true, false>(operands, target);
    run<T, Small, false, true, true>(operands, target);
}

}  // namespace

std::vector<SharedBytes> product_shared_bytes() {
    const auto of = [](auto tile, const char* name) -> SharedBytes {
        using Tile = decltype(tile);
        const std::size_t ring = max(Stage<Tile, Operand::weight>::shared_bytes(), Stage<Tile, Operand::weight_transposed>::shared_bytes());
        return {std::string("gated_product ") + name, max(ring, staged_bytes<Tile>())};
    };
    return {of(General(), "general"), of(Small(), "small"), of(Narrow(), "narrow"), of(Wide(), "wide"),
            of(NarrowGroups(), "narrow_groups"), of(WideGroups(), "wide_groups")};
}

// A lane of the real kernel holds that many sums in registers; a kernel that only traps needs a handful of registers.
bool has_warpgroups(int device) {
    return registers_of(gated_product_kernel<bfloat16, NarrowGroups, false, false, true>, device) >= NarrowGroups::pieces_n * 4;
}

void gated_product(const ProductArguments& arguments, Dtype dtype, Target target) {
    if (dtype == Dtype::float32) return gated_product_float32(arguments, target);
    if (dtype == Dtype::float16) return product<float16>(arguments, target);
    product<bfloat16>(arguments, target);
}

}  // namespace tss
