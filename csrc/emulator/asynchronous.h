// Asynchronous work of a thread: copies to shared memory, and products of warpgroups. It happens only when it is waited
// for, the latest time at which a GPU may do it; until then a read of its target gives NaN.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tss::emulator {

// Start a block, with nothing in flight.
void start_asynchronous(unsigned threads, std::size_t shared_bytes);

// cp.async: the target is NaN from the promise on, and the bytes of the source arrive at the wait.
void promise_copy(void* target, const void* source, unsigned bytes, unsigned valid_bytes);
void commit_copies();
// Wait until at most `pending_groups` of this thread's committed groups are not yet made.
void wait_for_copies(unsigned pending_groups);

// fence.proxy.async: what this thread's copies have brought so far can be read by descriptor; without it NaN is read.
void fence_shared();
// Whether a byte of shared memory can be read by descriptor; `at` counts from the start of shared memory.
bool is_fenced(std::size_t at);

// wgmma: the sums are NaN from the issue on. Operands are read, and sums are there, at the wait. Without a fence of
// registers since the last wait they stay NaN.
using Multiply = void (*)(float* sums, const unsigned* a, std::uint64_t descriptor);
void fence_registers();
void issue_product(float* sums, std::size_t count, const unsigned* a, std::uint64_t descriptor, Multiply multiply);
void commit_products();
void wait_for_products(unsigned pending_groups);

}  // namespace tss::emulator
