// The tensor-core and copy instructions by name. With TSS_EMULATED they are emulated on the CPU instead.
#pragma once

#ifdef TSS_EMULATED
#include "emulator/instructions.h"
#else

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace tss {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Asynchronous copies of 16 or 4 bytes to shared memory; bytes beyond the valid ones become 0.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, unsigned valid_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid_bytes)
                 : "memory");
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, unsigned valid_bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid_bytes)
                 : "memory");
}
// The same with all bytes valid.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Return the number, hidden from the compiler until here: what depends on it is computed where it is used, and not kept
// in registers through an earlier loop.
__device__ __forceinline__ std::int64_t not_before(std::int64_t number) {
    asm volatile("" : "+l"(number));
    return number;
}

// One store of 16 bytes; by itself the compiler may split it into four.
__device__ __forceinline__ void store_16(void* global, uint4 value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

// 1 / value, to about 20 bits.
__device__ __forceinline__ double approximate_inverse(double value) {
    double inverse;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(inverse) : "d"(value));
    return inverse;
}

// Return a mask of halves: the lower half is set if this byte of `lower` has its sign bit, the upper one likewise by
// `upper`.
__device__ __forceinline__ unsigned mask_of_signs(unsigned lower, unsigned upper, int byte) {
    unsigned mask;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(mask) : "r"(lower), "r"(upper), "r"(0xCC88 + 0x1111 * byte));
    return mask;
}

// Load four 8 x 8 matrices of 16-bit elements; lane 8 m + r gives the address of row r of matrix m.
template <bool transposed>
__device__ __forceinline__ void load_matrices(unsigned (&registers)[4], const void* row) {
    if constexpr (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(shared_address(row))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(shared_address(row))
                     : "memory");
    }
}

// Store four 8 x 8 matrices of 16-bit elements transposed: of each, a lane holds (row lane / 4, columns 2 (lane % 4)
// and the next), and lane 8 m + c gives the address, on a boundary of 16 bytes, where column c of matrix m becomes a
// row.
__device__ __forceinline__ void store_matrices_transposed(void* row, const unsigned (&registers)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
#else
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned turned;
        asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(registers[matrix]));
        const unsigned start = __shfl_sync(0xFFFFFFFFu, shared_address(row), 8 * matrix + lane / 4);
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(start + lane % 4 * 4), "r"(turned) : "memory");
    }
#endif
}

// Return two values as the halves of a register, the first in the lower one, rounded to nearest even.
template <class T>
__device__ __forceinline__ unsigned rounded_pair(float lower, float upper) {
    unsigned pair;
    if constexpr (std::is_same_v<T, bfloat16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower));
    return pair;
}

// d (16 x 8) += a (16 x 16) b (16 x 8), float32 sums.
template <class T>
__device__ __forceinline__ void multiply_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

#define TSS_MULTIPLY_16816(TYPE, NAME)                                                                                  \
    template <>                                                                                                         \
    __device__ __forceinline__ void multiply_16816<TYPE>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "  \
            "{%0, %1, %2, %3};"                                                                                         \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                            \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                        \
    }
TSS_MULTIPLY_16816(bfloat16, "bf16")
TSS_MULTIPLY_16816(float16, "f16")
#undef TSS_MULTIPLY_16816

// Descriptor of an operand in shared memory: rows of 128 bytes along k, swizzled; groups of eight rows 1,024 bytes
// apart.
__device__ __forceinline__ std::uint64_t shared_descriptor(const void* start) {
    return std::uint64_t(shared_address(start) & 0x3FFFF) >> 4 | std::uint64_t(1) << 16 | std::uint64_t(64) << 32 |
           std::uint64_t(1) << 62;
}

// Instructions of Hopper only, available in code for sm_90a and in no other, not even in what Hopper's driver compiles
// from PTX for compute_90: there, kernels that use them only trap, and registers_of reveals that before a launch.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TSS_HAS_WARPGROUPS 1
__device__ __forceinline__ void warpgroup_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Make this thread's writes to shared memory visible to the tensor cores that read it by descriptor.
__device__ __forceinline__ void fence_shared_for_warpgroup() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define TSS_F8(i)                                                                                          \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

// d (64 x n) += a (64 x 16, in registers) b (16 x n, in shared memory, k contiguous); each warp holds 16 rows of d.
template <class T, int n>
__device__ __forceinline__ void warpgroup_multiply(float (&d)[n / 2], const unsigned (&a)[4], std::uint64_t descriptor);

#define TSS_WARPGROUP_128(TYPE, NAME)                                                                                   \
    template <>                                                                                                         \
    __device__ __forceinline__ void warpgroup_multiply<TYPE, 128>(float (&d)[64], const unsigned (&a)[4],               \
                                                                 std::uint64_t descriptor) {                           \
        asm volatile(                                                                                                   \
            "{.reg .pred add; setp.eq.u32 add, 1, 1; "                                                                  \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " "                                            \
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "  \
            "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "   \
            "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "       \
            "{%64, %65, %66, %67}, %68, add, 1, 1, 0;}"                                                                 \
            : TSS_F8(0), TSS_F8(8), TSS_F8(16), TSS_F8(24), TSS_F8(32), TSS_F8(40), TSS_F8(48), TSS_F8(56)              \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));                                             \
    }
TSS_WARPGROUP_128(bfloat16, "bf16")
TSS_WARPGROUP_128(float16, "f16")
#undef TSS_WARPGROUP_128
#undef TSS_F8
#endif

}  // namespace tss
#endif
