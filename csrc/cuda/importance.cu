// Importance: mean and deviation of groups of elements in float64 and in a fixed order, then |tanh| and, where asked for, the
// maximum in one pass. A group is cut into equal chunks, one block each; blocks' and chunks' means and squared deviations are
// joined as by Chan, Golub and LeVeque (1979).
#include "cuda/device.cuh"
#include "cuda/operations.h"

namespace tss {
namespace {

constexpr int threads = 256;
constexpr double eps = 1e-6;
// Below this the series to z^5 is exact to a relative 1e-12; above it 1 - exp(-2 z) keeps 14 digits.
constexpr double series_end = 0.015625;

// Count, mean and sum of squared deviations of some elements.
struct Statistics {
    double count = 0.0, mean = 0.0, squares = 0.0;

    __device__ void join(const Statistics& other) {
        if (other.count == 0.0) return;
        const double both = count + other.count, difference = other.mean - mean;
        mean += difference * (other.count / both);
        squares += other.squares + difference * difference * (count * other.count / both);
        count = both;
    }
};

template <class T>
__device__ __forceinline__ double wide(T value) {
    if constexpr (std::is_same_v<T, double>) return value;
    else return static_cast<double>(to_float(value));
}

// Through float32, to which an importance is rounded first.
template <class T>
__device__ __forceinline__ T narrow(double value) {
    return from_float<T>(static_cast<float>(value));
}

__device__ __forceinline__ double abs_tanh(double z) {
    const double size = fabs(z), square = size * size;
    if (size < series_end) return size * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)));
    const double fallen = exp(-2.0 * size);
    return (1.0 - fallen) / (1.0 + fallen);
}

// Whether max(total, added) is total; NaN in either counts as the larger.
__device__ __forceinline__ bool stays(double total, double added) { return total != total || total > added; }

// The statistics of a block's threads, joined as a tree; all threads get them.
__device__ Statistics joined(const Statistics& mine) {
    auto* all = reinterpret_cast<Statistics*>(dynamic_shared());
    all[threadIdx.x] = mine;
    for (int half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) all[threadIdx.x].join(all[threadIdx.x + half]);
    }
    __syncthreads();
    const Statistics result = all[0];
    __syncthreads();
    return result;
}

// Of elements from start to stop, minus `origin`, so that equal elements are exactly 0. NaN and infinity make the mean NaN.
template <class T>
__device__ Statistics of_range(const T* raw, double origin, std::int64_t start, std::int64_t stop) {
    Statistics mine;
    for (std::int64_t at = start + threadIdx.x; at < stop; at += threads) {
        const double difference = wide(raw[at]) - origin - mine.mean;
        mine.count += 1.0;
        mine.mean += difference / mine.count;
        mine.squares += difference * (wide(raw[at]) - origin - mine.mean);
    }
    return joined(mine);
}

template <class Raw>
__global__ void __launch_bounds__(threads) statistics_kernel(const __grid_constant__ ImportanceArguments p, std::int64_t chunks) {
    const auto* raw = static_cast<const Raw*>(p.raw);
    const std::int64_t group = blockIdx.x / chunks, first = group * p.size, start = first + blockIdx.x % chunks * p.chunk;
    const Statistics found = of_range(raw, wide(raw[first]), start, min(start + p.chunk, first + p.size));
    if (threadIdx.x == 0) {
        p.partial[blockIdx.x] = found.mean;
        p.partial[p.groups * chunks + blockIdx.x] = found.squares;
    }
}

template <class Raw, class Result>
__global__ void __launch_bounds__(threads) importance_kernel(const __grid_constant__ ImportanceArguments p, std::int64_t chunks) {
    const auto* raw = static_cast<const Raw*>(p.raw);
    auto* result = static_cast<Result*>(p.importance);
    const std::int64_t group = blockIdx.x / chunks, first = group * p.size, start = first + blockIdx.x % chunks * p.chunk;
    const std::int64_t stop = min(start + p.chunk, first + p.size);
    const double origin = wide(raw[first]);
    Statistics all;
    if (chunks == 1) {
        all = of_range(raw, origin, start, stop);
    } else {
        Statistics mine;
        for (std::int64_t chunk = threadIdx.x; chunk < chunks; chunk += threads) {
            const std::int64_t at = group * chunks + chunk;
            mine.join({static_cast<double>(min(p.chunk, p.size - chunk * p.chunk)), p.partial[at], p.partial[p.groups * chunks + at]});
        }
        all = joined(mine);
    }
    const double scale = 1.0 / (sqrt(all.squares / static_cast<double>(p.size)) + eps);
    for (std::int64_t at = start + threadIdx.x; at < stop; at += threads) {
        double value = abs_tanh((wide(raw[at]) - origin - all.mean) * scale);
        if (p.update && stays(wide(result[at]), value)) continue;
        result[at] = narrow<Result>(value);
    }
}

template <class Total, class Added>
__global__ void __launch_bounds__(threads) accumulate_kernel(Total* total, const Added* added, std::int64_t size) {
    const std::int64_t at = std::int64_t(blockIdx.x) * threads + threadIdx.x;
    if (at >= size) return;
    Total rounded;
    if constexpr (std::is_same_v<Total, double>) rounded = wide(added[at]);
    else rounded = narrow<Total>(wide(added[at]));
    if (!stays(wide(total[at]), wide(rounded))) total[at] = rounded;
}

// Calls use(T()) with the type of a number's kind.
template <class Use>
void with_type(Dtype dtype, Use use) {
    switch (dtype) {
        case Dtype::float32: return use(float());
        case Dtype::float16: return use(float16());
        case Dtype::bfloat16: return use(bfloat16());
        case Dtype::float64: return use(double());
    }
}

}  // namespace

void importance(const ImportanceArguments& arguments, Target target) {
    const std::int64_t chunks = divide_up(arguments.size, arguments.chunk), blocks = arguments.groups * chunks;
    const std::size_t bytes = threads * sizeof(Statistics);
    with_type(arguments.raw_dtype, [&](auto raw) {
        using Raw = decltype(raw);
        if (chunks > 1) launch(statistics_kernel<Raw>, blocks, threads, bytes, target, arguments, chunks);
        with_type(arguments.importance_dtype, [&](auto result) {
            launch(importance_kernel<Raw, decltype(result)>, blocks, threads, bytes, target, arguments, chunks);
        });
    });
}

void accumulate_importance(void* total, Dtype total_dtype, const void* added, Dtype added_dtype, std::int64_t size, Target target) {
    with_type(total_dtype, [&](auto total_of) {
        using Total = decltype(total_of);
        with_type(added_dtype, [&](auto added_of) {
            using Added = decltype(added_of);
            launch(accumulate_kernel<Total, Added>, divide_up(size, threads), threads, 0, target, static_cast<Total*>(total),
                   static_cast<const Added*>(added), size);
        });
    });
}

}  // namespace tss
