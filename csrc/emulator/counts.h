// Counts of what emulated kernels execute that is expensive on a GPU. An instruction of a whole warp counts once.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace tss::emulator {

struct Counts {
    std::uint64_t launches = 0, blocks = 0;
    std::uint64_t barriers = 0;  // of a whole block
    std::uint64_t multiply_adds = 0, group_multiply_adds = 0;  // by mma and by wgmma
    std::uint64_t copies = 0, copied_bytes = 0;  // asynchronous ones; bytes that are read, not those that are filled up
    std::uint64_t matrix_loads = 0;              // ldmatrix, four 8 x 8 matrices each
    std::uint64_t conflicts = 0;                 // rows of ldmatrix and stmatrix that wait for another one's memory banks
    std::uint64_t exchanges = 0;                 // shuffles and ballots
    std::uint64_t atomics = 0;                   // of each thread
    std::uint64_t read_bytes = 0, written_bytes = 0;  // of global memory, by single accesses in files that are traced
};

// Whether any file is traced, that is, compiled so that its memory accesses are counted.
#ifdef TSS_TRACED
constexpr bool traced = true;
#else
constexpr bool traced = false;
#endif

// Counts of all launches since the last take_counts: kernels run one after the other, on one thread at a time.
extern Counts counts;

// Return the counts by name, in the order above, and reset them to 0.
std::vector<std::pair<std::string, std::uint64_t>> take_counts();

}  // namespace tss::emulator
