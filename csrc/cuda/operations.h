// The functions that bindings.cpp calls: one per operation, contiguous operands unless strides are given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda/target.h"

namespace tss {

// Shared memory that a kind of launch requests, for the table of kernel resources.
using SharedBytes = std::pair<std::string, std::size_t>;

// Scores (rows, columns) and the address for their packed gates; rows may be 0.
struct PackArguments {
    const void* scores;
    std::uint8_t* packed;
    std::int64_t rows, columns;
};
void pack_gates(const PackArguments& first, const PackArguments& second, Dtype dtype, float threshold, Target target);
void unpack_gates(const std::uint8_t* packed, bool* gates, std::int64_t rows, std::int64_t columns, Target target);

// W * g: from float32 scores, whose gates are written to `packed`, or, without scores, from `packed`.
struct MaskArguments {
    const float* scores;
    std::uint8_t* packed;
    const void* weight;
    void* masked;
    std::int64_t rows, columns;
    int element_bytes;
    float threshold;
};
void mask_weight(const MaskArguments& arguments, Target target);

// y = x (W * g)ᵀ + b, or, `transposed`, dx = dy (W * g). Activations have any strides; weight (out, in), packed gates
// (out, ceil(in / 8)), bias (out,) and the result are contiguous. Scores are float32 (out, in): they are compared
// instead of reading gates, and the resulting gates are written to `packed`. Every tiling except the general one needs
// rows of activations and weight on boundaries of 16 bytes and contiguous columns; those with groups need Hopper's
// instructions. With scores only the general tiling and the small one are supported. float32 has a tiling of its own,
// which takes anything. With `partial`, the summed dimension is cut into ranges of range_tiles tiles of 64, whose sums
// go there, float32 (ranges, rows, features), and are added in order; float32 does not support ranges.
enum class Tiling : int { general = 0, small = 1, narrow = 2, wide = 3, narrow_groups = 4, wide_groups = 5 };
struct ProductArguments {
    const void* activations;
    std::int64_t rows, row_stride, column_stride;
    const void* weight;
    std::int64_t out_features, in_features;
    std::uint8_t* packed;
    const float* scores;
    float threshold;
    const void* bias;
    void* result;
    bool transposed;
    Tiling tiling;
    float* partial;
    std::int64_t range_tiles;
};
void gated_product(const ProductArguments& arguments, Dtype dtype, Target target);
// Whether the tilings with groups run on a device: whether the code that its driver selects from this module is for
// sm_90a.
bool has_warpgroups(int device);
std::vector<SharedBytes> product_shared_bytes();

// grad = (dyᵀ x) * W * (1 - I), float32 (out, in). Rows are summed in ranges of range_rows, which
// scores_grad_range_rows returns; if there are several, `partial` is float32 (ranges, out, in).
struct ScoresGradArguments {
    const void* dy;
    std::int64_t dy_row_stride, dy_column_stride;
    const void* x;
    std::int64_t x_row_stride, x_column_stride;
    std::int64_t rows, out_features, in_features;
    const void* weight;
    const float* importance;
    float* grad;
    float* partial;
    std::int64_t range_rows;
};
std::int64_t scores_grad_range_rows(std::int64_t rows, std::int64_t out_features, std::int64_t in_features);
void scores_grad(const ScoresGradArguments& arguments, Dtype dtype, Target target);
std::vector<SharedBytes> scores_grad_shared_bytes();

// The whole adapter, y = x + (U * g) a((D * g) x + b) + c, or, with d_hidden, its input gradient. x (or dy) has any strides
// and the weights' dtype, or float32 (`wider`); down weight (bottleneck, features), up weight (features, bottleneck), both
// packed gates, biases, result and hidden units (rows, bottleneck) are contiguous. Forward: result is y, hidden is written
// (relu and tanh: the activation's result, else its argument). Gradient: x is dy, hidden is read, d_hidden written, result
// is dx or null if only d_hidden is needed. A narrow tile holds 64 hidden units, a wide one 128.
enum class Activation : int { relu = 0, gelu = 1, silu = 2, tanh = 3 };
enum class AdapterTiling : int { narrow_128 = 0, narrow_64 = 1, narrow_32 = 2, wide_64 = 3, wide_32 = 4 };
struct AdapterArguments {
    const void* x;
    std::int64_t rows, row_stride, column_stride;
    bool wider;
    const void* down_weight;
    const std::uint8_t* down_packed;
    const void* down_bias;
    const void* up_weight;
    const std::uint8_t* up_packed;
    const void* up_bias;
    std::int64_t features, bottleneck;
    void* result;
    void* hidden;
    void* d_hidden;
    Activation activation;
    AdapterTiling tile;
};
void gated_adapter(const AdapterArguments& arguments, Dtype dtype, Target target);
std::vector<SharedBytes> adapter_shared_bytes();

// A batch grouped by task: `order` int64 (entries,), the entries sorted by task, stably; `tiles` int64 (tiles, 3), each
// of up to group_tile_rows rows: the task, or -1 for rows whose id is of no task; the first row in the order of
// `order`; the number of rows. Task t, whose first entry is number s of `order`, has its first tile at s * length /
// tile_rows + min(t, s); tiles before the next task's that its rows do not fill have 0 rows.
struct GroupArguments {
    const std::int64_t* task_ids;
    std::int64_t entries, length, tasks;
    std::int64_t* order;
    std::int64_t* tiles;
};
std::int64_t group_tile_rows(Dtype dtype);
void group_by_task(const GroupArguments& arguments, Dtype dtype, Target target);

// The gated products of rows of many tasks, each tile with the gates at bank + task * task_bytes; rows of no task
// become NaN. `aligned` as for the tilings of a gated product; the result (rows, features) is contiguous. With an
// activation (its number, else -1) y is its result, and `hidden` receives what its derivative is computed from, or is
// null if that is the result; the transposed product reads it and applies the activation's gradient. A residual of any
// strides is added; `wider`: it and the result are float32.
struct MultiTaskArguments {
    const void* activations;
    std::int64_t row_stride, column_stride;
    const void* weight;
    std::int64_t out_features, in_features;
    const std::uint8_t* bank;
    std::int64_t task_bytes;
    const void* bias;
    void* result;
    bool transposed, aligned;
    int activation;
    void* hidden;
    const void* residual;
    std::int64_t residual_row_stride, residual_column_stride;
    bool wider;
    const std::int64_t* order;
    const std::int64_t* tiles;
    std::int64_t tile_count, length;
};
void multi_task_product(const MultiTaskArguments& arguments, Dtype dtype, Target target);
std::vector<SharedBytes> multi_task_shared_bytes();

// Values that follow from the step number and learning rate, as PyTorch computes them on the host; or, where `lr` is
// set, what the device computes them from: `lr` (float32 or float64 by its type's number), logarithms to base 2 of both
// betas, weight decay; and `steps`, where it stores them until they are used, three float32 for each parameter.
struct AdamwScalars {
    float decay, take1, beta2, take2, step_size, root_correction, eps;
    bool update_site, has_decay;
    const void* lr;
    unsigned lr_kind;
    double log_beta1, log_beta2, weight_decay;
    void* steps;
};
// One AdamW step. Seven numbers of `table` describe a parameter: the addresses of the parameter, its gradient, exp_avg,
// exp_avg_sq and importance (or 0), their types in four bits each, the number of elements. With `lr`, `steps` has the address
// of each one's step number (float32, float64 or int64, whose type's number is 4), whose type is in the bits above the
// others.
void adamw(const std::vector<std::int64_t>& table, const std::vector<std::uintptr_t>& steps, const AdamwScalars& scalars,
           Target target);

// I = |tanh((a - mean) / (deviation + 1e-6))| over groups of `size` neighbours, contiguous; written, or, with `update`,
// merged by the maximum with the existing values. `partial`: float64 (2, groups, chunks) if a group has more than one
// chunk.
struct ImportanceArguments {
    const void* raw;
    Dtype raw_dtype;
    void* importance;
    Dtype importance_dtype;
    double* partial;
    std::int64_t groups, size, chunk;
    bool update;
};
void importance(const ImportanceArguments& arguments, Target target);
void accumulate_importance(void* total, Dtype total_dtype, const void* added, Dtype added_dtype, std::int64_t size, Target target);

}  // namespace tss
