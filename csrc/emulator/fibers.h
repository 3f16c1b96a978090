// The threads of one block as fibers on one thread of the CPU: they switch only at barriers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/counts.h"

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tss::emulator {

// Run body as every thread of every block, one block after the other. From one barrier to the next, the threads of a
// block run in the order that TSS_EMULATED_ORDER names ("forward", the default, or "reverse"): a result that depends on
// it has a race. Shared memory has exactly the requested size and is filled with NaN when a block starts.
// Throws std::runtime_error if threads wait for each other forever.
void run(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(const void*), const void* context);
template <class Body>
void run(dim3 grid, dim3 block, std::size_t shared_bytes, const Body& body) {
    run(grid, block, shared_bytes, [](const void* it) { (*static_cast<const Body*>(it))(); }, &body);
}

// Wait for every thread of the block.
void block_barrier();
// Wait for every thread of the warp.
void warp_barrier();

// The start of the block's dynamic shared memory.
char* shared_memory();

constexpr std::size_t slot_bytes = 64;
// Return this warp's buffer of 32 slots for the current exchange. Two buffers alternate, so one barrier between writing
// and reading is enough: no lane writes to a buffer again before all have passed the barrier of the next exchange.
char* next_exchange_buffer();
unsigned lane();
unsigned thread_number();  // in its block
// Add to a count once for the whole warp.
inline void count(std::uint64_t& number, std::uint64_t more = 1) { number += lane() == 0 ? more : 0; }

// Return the values of all 32 lanes, each of which gives one; they are valid until the exchange after the next.
template <class T>
const T* exchange(const T& mine) {
    static_assert(sizeof(T) <= slot_bytes, "a slot is too small");
    T* values = reinterpret_cast<T*>(next_exchange_buffer());
    values[lane()] = mine;
    warp_barrier();
    return values;
}

// Whether a thread of a kernel runs, and whether an address is in that thread's own stack, shared memory, the arguments
// or an exchange buffer: everything else that a kernel can access is global memory.
bool runs_kernel();
bool is_private(const void* address);

}  // namespace tss::emulator
