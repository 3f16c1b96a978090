// Launches of the adapter's kernels for one weight type, with one of a few tiles, which Python chooses by shape.
#pragma once

#include "cuda/gated_adapter.cuh"
#include "cuda/operations.h"

namespace tss {

// A warp holds at most 32 sums a lane, so that two blocks of the larger tiles run on a multiprocessor.
using Narrow128 = AdapterTile<64, 128, 2, 4, 2, 4, 3>;
using Narrow64 = AdapterTile<64, 64, 2, 4, 2, 4, 4>;
using Narrow32 = AdapterTile<64, 32, 4, 2, 4, 2, 4>;
using Wide64 = AdapterTile<128, 64, 4, 2, 2, 4, 3>;
using Wide32 = AdapterTile<128, 32, 4, 2, 4, 2, 3>;

template <class T>
View<T> contiguous(const void* data, std::int64_t rows, std::int64_t columns) {
    return {static_cast<const T*>(data), rows, columns, columns, 1};
}

template <class T, class X, class Tile>
void run_adapter(const AdapterOperands<T, X>& operands, Target target) {
    const std::int64_t blocks = divide_up(operands.x.rows, Tile::rows);
    const bool backward = operands.d_hidden != nullptr;
    const auto kernel = backward ? gated_adapter_kernel<T, X, Tile, true> : gated_adapter_kernel<T, X, Tile, false>;
    launch(kernel, blocks, Tile::threads, Tile::shared_bytes(), target, operands);
}

template <class T, class X>
void launch_adapter(const AdapterArguments& arguments, Target target) {
    const std::int64_t features = arguments.features, bottleneck = arguments.bottleneck;
    const View<X> x{static_cast<const X*>(arguments.x), arguments.rows, features, arguments.row_stride,
                    arguments.column_stride};
    const View<T> down = contiguous<T>(arguments.down_weight, bottleneck, features);
    const View<T> up = contiguous<T>(arguments.up_weight, features, bottleneck);
    const View<X> result = contiguous<X>(arguments.result, arguments.rows, features);
    const View<T> hidden = contiguous<T>(arguments.hidden, arguments.rows, bottleneck);
    const AdapterOperands<T, X> operands{
        x,
        down,
        up,
        bits_at(arguments.down_packed, bottleneck, features),
        bits_at(arguments.up_packed, features, bottleneck),
        static_cast<const T*>(arguments.down_bias),
        static_cast<const T*>(arguments.up_bias),
        static_cast<X*>(arguments.result),
        static_cast<T*>(arguments.hidden),
        static_cast<T*>(arguments.d_hidden),
        arguments.activation,
        rows_start_evenly(x),
        rows_start_evenly(down),
        rows_start_evenly(up),
        rows_start_evenly(result),
        rows_start_evenly(hidden) && starts_evenly(arguments.d_hidden),
    };
    switch (arguments.tile) {
        case AdapterTiling::narrow_128: return run_adapter<T, X, Narrow128>(operands, target);
        case AdapterTiling::narrow_64: return run_adapter<T, X, Narrow64>(operands, target);
        case AdapterTiling::narrow_32: return run_adapter<T, X, Narrow32>(operands, target);
        case AdapterTiling::wide_64: return run_adapter<T, X, Wide64>(operands, target);
        case AdapterTiling::wide_32: return run_adapter<T, X, Wide32>(operands, target);
    }
}

template <class T>
void gated_adapter_of(const AdapterArguments& arguments, Target target) {
    if (arguments.wider) launch_adapter<T, float>(arguments, target);
    else launch_adapter<T, T>(arguments, target);
}

// Defined in gated_adapter_float16.cu, so that two compiler processes share the work.
void gated_adapter_float16(const AdapterArguments& arguments, Target target);

}  // namespace tss
