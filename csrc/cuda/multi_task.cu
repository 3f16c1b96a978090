// Products of rows of many tasks: a launch that groups a batch by task, and the gated products in tiles of one task
// each.
#include "cuda/multi_task.cuh"

#include "cuda/float32_product.cuh"

namespace tss {
namespace {

constexpr int group_threads = 256, group_warps = group_threads / warp_size;
constexpr std::size_t group_shared_bytes = (group_warps + 2) * sizeof(int);

__device__ __forceinline__ int sum_of_warp(int value) {
#pragma unroll
    for (int half = warp_size / 2; half > 0; half /= 2) value += __shfl_xor_sync(whole_warp, value, half);
    return value;
}

// One block for each task, and a last one for ids of no task.
__global__ void __launch_bounds__(group_threads) group_kernel(GroupArguments p, int tile_rows) {
    int* const totals = reinterpret_cast<int*>(dynamic_shared());  // of warps; then of lower and of own entries
    const std::int64_t task = blockIdx.x;
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const auto task_at = [&](std::int64_t entry) {
        const std::int64_t id = p.task_ids[entry];
        return id >= 0 && id < p.tasks ? id : p.tasks;
    };
    if (threadIdx.x < 2) totals[group_warps + threadIdx.x] = 0;
    __syncthreads();
    int lower = 0, own = 0;
    for (std::int64_t entry = threadIdx.x; entry < p.entries; entry += group_threads) {
        const std::int64_t other = task_at(entry);
        lower += other < task;
        own += other == task;
    }
    lower = sum_of_warp(lower);
    own = sum_of_warp(own);
    if (lane == 0) {
        atomicAdd(&totals[group_warps], lower);
        atomicAdd(&totals[group_warps + 1], own);
    }
    __syncthreads();
    const std::int64_t first = totals[group_warps], count = totals[group_warps + 1];
    std::int64_t place = first;
    for (std::int64_t start = 0; start < p.entries && place < first + count; start += group_threads) {
        const std::int64_t entry = start + threadIdx.x;
        const bool mine = entry < p.entries && task_at(entry) == task;
        const unsigned all = __ballot_sync(whole_warp, mine);
        if (lane == 0) totals[warp] = __popc(all);
        __syncthreads();
        int before = __popc(all & ((1u << lane) - 1)), of_block = 0;
#pragma unroll
        for (int other = 0; other < group_warps; ++other) {
            if (other < warp) before += totals[other];
            of_block += totals[other];
        }
        if (mine) p.order[place + before] = entry;
        place += of_block;
        __syncthreads();
    }
    const std::int64_t end = first + count;
    const std::int64_t first_tile = first * p.length / tile_rows + min(task, first);
    const std::int64_t last_tile = end * p.length / tile_rows + min(task + 1, end);
    for (std::int64_t tile = first_tile + threadIdx.x; tile < last_tile; tile += group_threads) {
        const std::int64_t row = first * p.length + (tile - first_tile) * tile_rows;
        p.tiles[3 * tile] = task < p.tasks ? task : -1;
        p.tiles[3 * tile + 1] = row;
        p.tiles[3 * tile + 2] = min(max(end * p.length - row, std::int64_t(0)), std::int64_t(tile_rows));
    }
}

// The tiles of gated_linear's small and general tilings.
template <bool aligned>
using TileOf = ProductTile<64, 32, 2, 2, aligned ? 3 : 2>;
template <class Tile, bool transposed>
using StageOf = Stage<Tile, transposed ? Operand::weight_transposed : Operand::weight>;
// Start and end of the list of a tile's rows in shared memory.
template <class Tile, bool transposed>
constexpr std::size_t ring_bytes = StageOf<Tile, transposed>::shared_bytes();
template <class Tile, bool transposed>
constexpr std::size_t all_bytes = ring_bytes<Tile, transposed> + Tile::n * sizeof(std::int64_t);
constexpr std::size_t float32_bytes = float32_shared_bytes + float32_tile * sizeof(std::int64_t);

template <class T, class Tile, bool transposed, bool aligned>
__global__ void __launch_bounds__(Tile::threads) multi_task_kernel(const __grid_constant__ MultiTaskArguments p) {
    const std::int64_t features = transposed ? p.in_features : p.out_features, depth = transposed ? p.out_features : p.in_features;
    const std::int64_t column_blocks = divide_up(features, Tile::m);
    const TaskTile tile(p, blockIdx.x / column_blocks);
    if (tile.count == 0) return;
    char* const memory = dynamic_shared();
    std::int64_t* const rows = reinterpret_cast<std::int64_t*>(memory + ring_bytes<Tile, transposed>);
    tile.template list_rows<Tile::n, Tile::threads>(rows, p);
    const std::int64_t first_feature = blockIdx.x % column_blocks * Tile::m;
    const View<T> activations{static_cast<const T*>(p.activations), 0, depth, p.row_stride, p.column_stride};
    const ListedRows<Tile::n, Tile::threads, aligned, T> listed(activations, rows);
    const ProductOperands<T> operands{
        activations, static_cast<const T*>(p.weight), p.out_features, p.in_features, bits_at(tile.gates(p), p.out_features, p.in_features),
        nullptr, 0.0f, nullptr, nullptr, nullptr, false};
    const int whole = first_feature + Tile::m <= features && operands.gates.words ? static_cast<int>(depth / k_tile) : 0;
    Sums<Tile> sums;
    accumulate_masked<T, Tile, transposed, false, aligned>(
        sums, memory, operands, first_feature, 0, depth, whole, nullptr,
        [&](char* to, std::int64_t, std::int64_t k, auto) { listed.load(to, k); });
    finish<T, transposed>(p, tile, features, [&](auto use) {
        sums.each([&](int m, int n, float sum) {
            if (rows[n] >= 0 && first_feature + m < features) use(rows[n], first_feature + m, sum);
        });
    });
}

template <bool transposed>
__global__ void __launch_bounds__(float32_threads) multi_task_float32_kernel(const __grid_constant__ MultiTaskArguments p) {
    const std::int64_t features = transposed ? p.in_features : p.out_features, depth = transposed ? p.out_features : p.in_features;
    const std::int64_t feature_blocks = divide_up(features, float32_tile);
    const TaskTile tile(p, blockIdx.x / feature_blocks);
    if (tile.count == 0) return;
    std::int64_t* const rows = reinterpret_cast<std::int64_t*>(dynamic_shared() + float32_shared_bytes);
    tile.list_rows<float32_tile, float32_threads>(rows, p);
    const auto* activations = static_cast<const float*>(p.activations);
    const auto* weight = static_cast<const float*>(p.weight);
    const std::uint8_t* const gates = tile.gates(p);
    const std::int64_t row_bytes = divide_up(p.in_features, gates_of_byte);
    const std::int64_t first_feature = blockIdx.x % feature_blocks * float32_tile;
    const auto activation = [&](std::int64_t place, std::int64_t k) {
        return rows[place] >= 0 ? activations[rows[place] * p.row_stride + k * p.column_stride] : 0.0f;
    };
    const auto masked = [&](std::int64_t k, std::int64_t feature) {
        if (feature >= features) return 0.0f;
        const std::int64_t out = transposed ? k : feature, in = transposed ? feature : k;
        return gates[out * row_bytes + in / gates_of_byte] >> (in % gates_of_byte) & 1 ? weight[out * p.in_features + in] : 0.0f;
    };
    float sums[float32_share][float32_share];
    multiply_float32(sums, 0, first_feature, 0, depth, activation, masked);
    finish<float, transposed>(p, tile, features, [&](auto use) {
        each_float32(sums, 0, first_feature, tile.count, features,
                     [&](std::int64_t place, std::int64_t feature, float sum) { use(rows[place], feature, sum); });
    });
}

template <class T, bool transposed, bool aligned>
void run(const MultiTaskArguments& p, Target target) {
    using Tile = TileOf<aligned>;
    const std::int64_t blocks = divide_up(transposed ? p.in_features : p.out_features, Tile::m) * p.tile_count;
    launch(multi_task_kernel<T, Tile, transposed, aligned>, blocks, Tile::threads, all_bytes<Tile, transposed>, target, p);
}

template <class T>
void product(const MultiTaskArguments& p, Target target) {
    if (p.transposed) return p.aligned ? run<T, true, true>(p, target) : run<T, true, false>(p, target);
    return p.aligned ? run<T, false, true>(p, target) : run<T, false, false>(p, target);
}

}  // namespace

std::int64_t group_tile_rows(Dtype dtype) { return dtype == Dtype::float32 ? float32_tile : TileOf<true>::n; }

void group_by_task(const GroupArguments& arguments, Dtype dtype, Target target) {
    if (arguments.entries == 0) return;
    launch(group_kernel, arguments.tasks + 1, group_threads, group_shared_bytes, target, arguments,
           static_cast<int>(group_tile_rows(dtype)));
}

void multi_task_product(const MultiTaskArguments& arguments, Dtype dtype, Target target) {
    if (dtype == Dtype::float16) return product<float16>(arguments, target);
    if (dtype == Dtype::bfloat16) return product<bfloat16>(arguments, target);
    const std::int64_t features = arguments.transposed ? arguments.in_features : arguments.out_features;
    launch(arguments.transposed ? multi_task_float32_kernel<true> : multi_task_float32_kernel<false>,
           divide_up(features, float32_tile) * arguments.tile_count, float32_threads, float32_bytes, target, arguments);
}

std::vector<SharedBytes> multi_task_shared_bytes() {
    return {{"multi_task", max(all_bytes<TileOf<true>, false>, all_bytes<TileOf<true>, true>)},
            {"multi_task float32", float32_bytes}};
}

}  // namespace tss
