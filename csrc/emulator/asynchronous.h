// What a thread has under way beside its own instructions: copies to shared memory, and products of warpgroups. None of
// it happens before it is waited for, as late as a GPU may be; until then whoever looks at its target sees NaN.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tss::emulator {

// Nothing is under way when a block starts.
void start_asynchronous(unsigned threads, std::size_t shared_bytes);

// cp.async: what lies at the target is NaN from the promise on, and the bytes of the source arrive at the wait.
void promise_copy(void* target, const void* source, unsigned bytes, unsigned valid_bytes);
void commit_copies();
// Waits until at most so many of this thread's committed groups are unmade.
void wait_for_copies(unsigned pending_groups);

// fence.proxy.async: what this thread's copies brought until now can be read by descriptor; NaN is read without it.
void fence_shared();
// Whether that holds for a byte of shared memory, counted from its start.
bool is_fenced(std::size_t at);

// wgmma: the sums are NaN from the issue on. Operands are read, and sums are there, at the wait. Without a fence of
// registers since the last wait they stay NaN.
using Multiply = void (*)(float* sums, const unsigned* a, std::uint64_t descriptor);
void fence_registers();
void issue_product(float* sums, std::size_t count, const unsigned* a, std::uint64_t descriptor, Multiply multiply);
void commit_products();
void wait_for_products(unsigned pending_groups);

}  // namespace tss::emulator
