// The tensor-core and copy instructions; what each lane holds and gets follows the PTX ISA manual ("Matrix
// multiply-accumulate" and "Asynchronous warpgroup level matrix"). Everything else in a kernel is its own source.
#pragma once

#include <type_traits>

#include "emulator/asynchronous.h"
#include "emulator/language.h"
#include "emulator/tensor_core.h"

namespace tss {

inline void copy_async_16(void* shared, const void* global, unsigned valid_bytes) {
    emulator::promise_copy(shared, global, 16, valid_bytes);
}
inline void copy_async_4(void* shared, const void* global, unsigned valid_bytes) {
    emulator::promise_copy(shared, global, 4, valid_bytes);
}
inline void copy_async_16(void* shared, const void* global) { emulator::promise_copy(shared, global, 16, 16); }
inline void copy_async_4(void* shared, const void* global) { emulator::promise_copy(shared, global, 4, 4); }
inline void commit_copies() { emulator::commit_copies(); }
template <int pending>
void wait_for_copies() { emulator::wait_for_copies(pending); }

inline std::int64_t not_before(std::int64_t number) { return number; }

inline void store_16(void* global, uint4 value) { *static_cast<uint4*>(global) = value; }

// Use the upper words only, as the PTX manual specifies for rcp.approx.ftz.f64.
inline double approximate_inverse(double value) {
    return __hiloint2double(__double2hiint(1.0 / __hiloint2double(__double2hiint(value), 0)), 0);
}

// Return a mask of halves: the lower half is set if this byte of `lower` has its sign bit, the upper one likewise by
// `upper`.
inline unsigned mask_of_signs(unsigned lower, unsigned upper, int byte) {
    const unsigned sign = 0x80u << (8 * byte);
    return ((lower & sign) != 0 ? 0x0000FFFFu : 0) | ((upper & sign) != 0 ? 0xFFFF0000u : 0);
}

// Shared memory serves the eight rows of a matrix at once if their 16 bytes are in different banks.
inline void count_conflicts(const void* const* rows) {
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        unsigned taken = 0;
        for (unsigned r = 0; r < 8; ++r) taken |= 1u << (reinterpret_cast<std::uintptr_t>(rows[8 * matrix + r]) / 16 % 8);
        emulator::count(emulator::counts.conflicts, 8 - __popc(taken));
    }
}

// Load four 8 x 8 matrices of 16-bit elements; lane 8 m + r gives the address of row r of matrix m.
template <bool transposed>
void load_matrices(unsigned (&registers)[4], const void* row) {
    emulator::count(emulator::counts.matrix_loads);
    const void* const* rows = emulator::exchange(static_cast<const void*>(row));
    count_conflicts(rows);
    const unsigned lane = emulator::lane();
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (unsigned i = 0; i < 2; ++i) {
            const unsigned r = transposed ? 2 * (lane % 4) + i : lane / 4, c = transposed ? lane / 4 : 2 * (lane % 4) + i;
            std::memcpy(&pair[i], static_cast<const char*>(rows[8 * matrix + r]) + 2 * c, 2);
        }
        std::memcpy(&registers[matrix], pair, 4);
    }
}

// Store four 8 x 8 matrices of 16-bit elements transposed: of each, a lane holds (row lane / 4, columns 2 (lane % 4)
// and the next), and lane 8 m + c gives the address where column c of matrix m becomes a row.
inline void store_matrices_transposed(void* row, const unsigned (&registers)[4]) {
    count_conflicts(emulator::exchange(static_cast<const void*>(row)));
    struct Held { unsigned registers[4]; };
    const Held* lanes = emulator::exchange(Held{{registers[0], registers[1], registers[2], registers[3]}});
    const unsigned lane = emulator::lane(), column = lane % 8;
    for (unsigned r = 0; r < 8; ++r) {
        const auto element = std::uint16_t(lanes[4 * r + column / 2].registers[lane / 8] >> (16 * (column % 2)));
        std::memcpy(static_cast<char*>(row) + 2 * r, &element, 2);
    }
}

// Return two values as the halves of a register, the first in the lower one, rounded to nearest even.
template <class T>
unsigned rounded_pair(float lower, float upper) {
    const auto bits = [](float value) -> unsigned {
        if constexpr (std::is_same_v<T, bfloat16>) return to_bfloat(value);
        else return to_half(value);
    };
    return bits(lower) | bits(upper) << 16;
}

namespace emulator {

struct Fragments { unsigned a[4], b[2]; };

template <class T>
float half_of(unsigned pair, unsigned index) {
    return to_float(T{std::uint16_t(pair >> (16 * index))});
}

// Element (row, k) of the 16 x 16 operand A that 32 lanes hold.
template <class T>
float a_element(const Fragments* lanes, unsigned row, unsigned k) {
    const unsigned register_index = (row / 8) + 2 * (k / 8);
    return half_of<T>(lanes[4 * (row % 8) + k % 8 / 2].a[register_index], k % 2);
}

}  // namespace emulator

// d (16 x 8) += a (16 x 16) b (16 x 8), float32 sums.
template <class T>
void multiply_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::count(emulator::counts.multiply_adds, 16 * 8 * 16);
    const auto* lanes = emulator::exchange(emulator::Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    const unsigned lane = emulator::lane();
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        float products[16];
        for (unsigned k = 0; k < 16; ++k) {
            const float b_element = emulator::half_of<T>(lanes[4 * column + k % 8 / 2].b[k / 8], k % 2);
            products[k] = emulator::a_element<T>(lanes, row, k) * b_element;
        }
        d[i] = emulator::cut_sum(d[i], products);
    }
}

// Descriptor of an operand in shared memory: rows of 128 bytes along k, swizzled; groups of eight rows 1,024 bytes
// apart.
inline std::uint64_t shared_descriptor(const void* start) {
    const auto offset = static_cast<const char*>(start) - emulator::shared_memory();
    return (std::uint64_t(offset) & 0x3FFFF) >> 4 | std::uint64_t(1) << 16 | std::uint64_t(64) << 32 | std::uint64_t(1) << 62;
}

inline void warpgroup_arrive() { emulator::fence_registers(); }
inline void warpgroup_commit() { emulator::commit_products(); }
template <int pending>
void warpgroup_wait() { emulator::wait_for_products(pending); }
inline void fence_shared_for_warpgroup() { emulator::fence_shared(); }

namespace emulator {

// Compute this warp's 16 rows of d (64 x n) += a (64 x 16) b (16 x n); called at the wait for the product.
template <class T, int n>
void multiply_now(float* d, const unsigned* a, std::uint64_t descriptor) {
    const auto* lanes = exchange(Fragments{{a[0], a[1], a[2], a[3]}, {}});
    const std::uint64_t start = (descriptor & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
    for (unsigned i = 0; i < n / 2; ++i) {
        const unsigned row = lane() / 4 + 8 * (i % 4 / 2), column = 8 * (i / 4) + 2 * (lane() % 4) + i % 2;
        float products[16];
        for (unsigned k = 0; k < 16; ++k) {
            std::uint64_t at = start + column / 8 * stride + column % 8 * 128 + 2 * k;
            at ^= (at >> 7 & 7) << 4;
            T b{0xFFFF};  // NaN
            if (is_fenced(at)) std::memcpy(&b, shared_memory() + at, 2);
            products[k] = a_element<T>(lanes, row, k) * to_float(b);
        }
        d[i] = cut_sum(d[i], products);
    }
}

}  // namespace emulator

// d (64 x n) += a (64 x 16, in registers) b (16 x n, in shared memory, k contiguous): issued now, computed at the wait.
template <class T, int n>
void warpgroup_multiply(float (&d)[n / 2], const unsigned (&a)[4], std::uint64_t descriptor) {
    emulator::count(emulator::counts.group_multiply_adds, 16 * n * 16);
    emulator::issue_product(d, n / 2, a, descriptor, &emulator::multiply_now<T, n>);
}

}  // namespace tss
