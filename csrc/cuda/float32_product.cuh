// Products of float32 without tensor cores, for any strides: with float32 precision, one tile for all shapes.
#pragma once

#include "cuda/gates.cuh"
#include "cuda/operations.h"

namespace tss {

constexpr int float32_tile = 64, float32_depth = 16, float32_threads = 256, float32_share = 4;
// Sixteen rows of two neighbours, which a warp writes, are in 32 different banks.
constexpr int float32_pitch = float32_tile + 2;

void gated_product_float32(const ProductArguments& arguments, Target target);

// Compute the sums d (m, n) = Σ a(m, k) b(k, n) for k in [first_k, last_k); a lane has 4 x 4 of them, 16 apart.
// `a` and `b` read an element, and 0 outside their matrix.
template <class A, class B>
__device__ __forceinline__ void multiply_float32(float (&sums)[float32_share][float32_share], std::int64_t first_m,
                                                 std::int64_t first_n, std::int64_t first_k, std::int64_t last_k, A a, B b) {
    constexpr int pitch = float32_pitch;
    float* a_tile = reinterpret_cast<float*>(dynamic_shared());
    float* b_tile = a_tile + float32_depth * pitch;
    const int m = threadIdx.x / 16, n = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < float32_share; ++i) {
#pragma unroll
        for (int j = 0; j < float32_share; ++j) sums[i][j] = 0.0f;
    }
    for (std::int64_t start = first_k; start < last_k; start += float32_depth) {
        for (int at = threadIdx.x; at < float32_tile * float32_depth; at += float32_threads) {
            const int k = at % float32_depth, other = at / float32_depth;
            const bool inside = start + k < last_k;
            a_tile[k * pitch + other] = inside ? a(first_m + other, start + k) : 0.0f;
            b_tile[k * pitch + other] = inside ? b(start + k, first_n + other) : 0.0f;
        }
        __syncthreads();
        // Summed within each depth tile, then over the tiles: rounding errors grow with the longer of the two sums, not
        // with the product of their lengths.
        float parts[float32_share][float32_share] = {};
#pragma unroll
        for (int k = 0; k < float32_depth; ++k) {
            float a_values[float32_share], b_values[float32_share];
#pragma unroll
            for (int i = 0; i < float32_share; ++i) {
                a_values[i] = a_tile[k * pitch + m + 16 * i];
                b_values[i] = b_tile[k * pitch + n + 16 * i];
            }
#pragma unroll
            for (int i = 0; i < float32_share; ++i) {
#pragma unroll
                for (int j = 0; j < float32_share; ++j) parts[i][j] = fmaf(a_values[i], b_values[j], parts[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < float32_share; ++i) {
#pragma unroll
            for (int j = 0; j < float32_share; ++j) sums[i][j] += parts[i][j];
        }
        __syncthreads();
    }
}

constexpr std::size_t float32_shared_bytes = 2 * float32_depth * float32_pitch * sizeof(float);

// Call use(m, n, value) for this lane's sums inside an m x n matrix.
template <class Use>
__device__ __forceinline__ void each_float32(const float (&sums)[float32_share][float32_share], std::int64_t first_m,
                                             std::int64_t first_n, std::int64_t m_size, std::int64_t n_size, Use use) {
#pragma unroll
    for (int i = 0; i < float32_share; ++i) {
#pragma unroll
        for (int j = 0; j < float32_share; ++j) {
            const std::int64_t m = first_m + threadIdx.x / 16 + 16 * i, n = first_n + threadIdx.x % 16 + 16 * j;
            if (m < m_size && n < n_size) use(m, n, sums[i][j]);
        }
    }
}

}  // namespace tss
