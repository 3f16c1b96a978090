// Importance: mean and deviation of groups of elements in float64 and in a fixed order, then |tanh| and, if requested,
// the maximum in one pass. A group is cut into equal chunks, one block each. GPUs have few float64 units: loops over
// elements do not divide, and one warp computes what a block needs once.
#include <limits>

#include "cuda/device.cuh"
#include "cuda/operations.h"

namespace tss {
namespace {

constexpr int threads = 256;
constexpr std::size_t shared_bytes = (threads + 1) * sizeof(double);  // of sum_of_block
constexpr double eps = 1e-6, infinity = std::numeric_limits<double>::infinity();

template <class T>
__device__ __forceinline__ double wide(T value) {
    if constexpr (std::is_same_v<T, double>) return value;
    else return static_cast<double>(to_float(value));
}

// Convert to a type that can be compared; not to float64, since that conversion takes as long as four float64
// additions.
template <class T>
__device__ __forceinline__ auto comparable(T value) {
    if constexpr (std::is_same_v<T, double>) return value;
    else return to_float(value);
}

// Whether max(total, added) is total; NaN in either counts as the larger.
template <class T, class U>
__device__ __forceinline__ bool stays(T total, U added) {
    return total != total || total > added;
}

// 1 - 2^y for y <= 0 to a relative 3e-10, however near to 0: with y = n + r, n an integer and |r| <= 1/2, it is
// (1 - 2^n) - 2^n (2^r - 1), and 2^r - 1 is r times the polynomial that approximates it best in relative error.
__device__ __forceinline__ double one_less_power(double y) {
    constexpr double to_whole = 6755399441055744.0;  // 1.5 2^52: in a sum with it, the low word is the nearest integer
    const double shifted = y + to_whole, r = y - (shifted - to_whole);
    const int n = max(__double2loint(shifted), -64);  // below that 1 - 2^n is 1
    const double power = __hiloint2double(static_cast<int>((1023u + static_cast<unsigned>(n)) << 20), 0);
    double slope = 1.5252714323613949e-05;
    slope = fma(slope, r, 0.00015461329749426884);
    slope = fma(slope, r, 0.001333366947029853);
    slope = fma(slope, r, 0.00961805703756016);
    slope = fma(slope, r, 0.05550410727584675);
    slope = fma(slope, r, 0.2402265092004783);
    slope = fma(slope, r, 0.6931471805815694);
    return fma(-power, slope * r, 1.0 - power);
}

constexpr double two_over_ln2 = 2.8853900817779268;

// Return |tanh(z)|; scaled is two_over_ln2 z. One correction step squares the relative error of the inverse, 2^-20.
__device__ __forceinline__ double abs_tanh(double scaled) {
    const double upper = one_less_power(-fabs(scaled)), lower = 2.0 - upper, inverse = approximate_inverse(lower);
    const double quotient = upper * inverse;
    return fma(quotient, fma(-lower, inverse, 1.0), quotient);
}

// Return finish(sum of all threads' numbers) to every thread; only the first thread calls `finish`.
template <class Finish>
__device__ __forceinline__ double sum_of_block(double mine, Finish finish) {
    auto* all = reinterpret_cast<double*>(dynamic_shared());
    all[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x < warp_size) {
        double sum = mine;
        for (int other = warp_size; other < threads; other += warp_size) sum += all[threadIdx.x + other];
        for (int half = warp_size / 2; half > 0; half /= 2) sum += __shfl_down_sync(whole_warp, sum, half);
        if (threadIdx.x == 0) all[threads] = finish(sum);
    }
    __syncthreads();
    return all[threads];
}

// The mean of some elements, minus an origin, and the result of `finish` on the sum of their squared deviations from
// it.
struct Statistics {
    double mean, spread;
};

// Statistics of the elements from start to stop, minus `origin`, so that equal elements are exactly 0. NaN and infinity
// make the spread NaN. Each thread sums the differences of its elements from its first one, and corrects them to the
// block's mean at the end: the terms that cancel then exceed the result at most by a factor of the number of elements
// of a thread.
template <class T, class Finish>
__device__ __forceinline__ Statistics of_range(const T* raw, double origin, std::int64_t start, std::int64_t stop, Finish finish) {
    const std::int64_t from = start + threadIdx.x;
    const bool any = from < stop;
    const double first = any ? wide(raw[from]) : origin;
    double sum = 0.0, squares = 0.0;
    for (std::int64_t at = from + threads; at < stop; at += threads) {
        const double beyond = wide(raw[at]) - first;
        sum += beyond;
        squares = fma(beyond, beyond, squares);
    }
    const double count = any ? static_cast<double>(divide_up(stop - from, threads)) : 0.0;
    const double elements = static_cast<double>(stop - start), far = first - origin;
    const double mean = sum_of_block(fma(count, far, sum), [&](double all) { return all / elements; });
    const double off = mean - far;
    const double spread = sum_of_block(any ? fma(off, fma(count, off, -2.0 * sum), squares) : 0.0, [&](double all) {
        // With finite numbers, NaN arises only if their squares are not finite: too far apart for float64, not an
        // error.
        const bool overflown = all != all && fabs(mean) < infinity;
        return finish(overflown ? infinity : all < 0.0 ? 0.0 : all);
    });
    return {mean, spread};
}

// Statistics of the whole group, from those of its chunks.
template <class Finish>
__device__ __forceinline__ Statistics of_chunks(const ImportanceArguments& p, std::int64_t group, std::int64_t chunks, Finish finish) {
    const double* means = p.partial + group * chunks;
    const double* spreads = means + p.groups * chunks;
    const double whole = static_cast<double>(p.chunk), last = static_cast<double>(p.size - (chunks - 1) * p.chunk);
    double sum = 0.0, squares = 0.0;
    for (std::int64_t chunk = threadIdx.x; chunk < chunks; chunk += threads) {
        sum = fma(chunk == chunks - 1 ? last : whole, means[chunk], sum);
    }
    const double mean = sum_of_block(sum, [&](double all) { return all / static_cast<double>(p.size); });
    for (std::int64_t chunk = threadIdx.x; chunk < chunks; chunk += threads) {
        const double off = means[chunk] - mean;
        squares += fma((chunk == chunks - 1 ? last : whole) * off, off, spreads[chunk]);
    }
    return {mean, sum_of_block(squares, finish)};
}

template <class Raw>
__global__ void __launch_bounds__(threads) statistics_kernel(const __grid_constant__ ImportanceArguments p, std::int64_t chunks) {
    const auto* raw = static_cast<const Raw*>(p.raw);
    const std::int64_t group = blockIdx.x / chunks, first = group * p.size, start = first + blockIdx.x % chunks * p.chunk;
    const Statistics found = of_range(raw, wide(raw[first]), start, min(start + p.chunk, first + p.size),
                                      [](double squares) { return squares; });
    if (threadIdx.x == 0) {
        p.partial[blockIdx.x] = found.mean;
        p.partial[p.groups * chunks + blockIdx.x] = found.spread;
    }
}

template <class Raw, class Result>
__global__ void __launch_bounds__(threads) importance_kernel(const __grid_constant__ ImportanceArguments p, std::int64_t chunks) {
    const auto* raw = static_cast<const Raw*>(p.raw);
    auto* result = static_cast<Result*>(p.importance);
    const std::int64_t group = blockIdx.x / chunks, first = group * p.size, start = first + blockIdx.x % chunks * p.chunk;
    const std::int64_t stop = min(start + p.chunk, first + p.size);
    const double origin = wide(raw[first]);
    const auto scale_of = [&](double squares) { return two_over_ln2 / (sqrt(squares / static_cast<double>(p.size)) + eps); };
    const Statistics all = chunks == 1 ? of_range(raw, origin, start, stop, scale_of) : of_chunks(p, group, chunks, scale_of);
    const double scale = all.spread, shift = -all.mean * scale;
    for (std::int64_t at = start + threadIdx.x; at < stop; at += threads) {
        const float value = static_cast<float>(abs_tanh(fma(wide(raw[at]) - origin, scale, shift)));
        if (p.update && stays(comparable(result[at]), value)) continue;
        result[at] = from_float<Result>(value);
    }
}

template <class Total, class Added>
__global__ void __launch_bounds__(threads) accumulate_kernel(Total* total, const Added* added, std::int64_t size) {
    const std::int64_t at = std::int64_t(blockIdx.x) * threads + threadIdx.x;
    if (at >= size) return;
    Total rounded;
    if constexpr (std::is_same_v<Total, double>) rounded = wide(added[at]);
    else rounded = from_float<Total>(static_cast<float>(comparable(added[at])));
    if (!stays(comparable(total[at]), comparable(rounded))) total[at] = rounded;
}

// Call use(T()) with the type of this dtype.
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
    with_type(arguments.raw_dtype, [&](auto raw) {
        using Raw = decltype(raw);
        if (chunks > 1) launch(statistics_kernel<Raw>, blocks, threads, shared_bytes, target, arguments, chunks);
        with_type(arguments.importance_dtype, [&](auto result) {
            launch(importance_kernel<Raw, decltype(result)>, blocks, threads, shared_bytes, target, arguments, chunks);
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
