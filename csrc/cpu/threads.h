// Parallel work on a few threads: those of a team from outside, or this module's own, which sleep between calls.
#pragma once

#include <cstdint>

namespace tss {

// Process the units from begin up to end.
using Body = void (*)(void* context, int64_t begin, int64_t end);

// Process all units, `grain` of them at a time, on at most `threads` threads, including the calling one. Which thread
// processes which unit is not determined, so results must not depend on it. May be called from several threads at once.
void parallel_for(int64_t units, int64_t grain, int threads, Body body, void* context);

// OpenMP's GOMP_parallel, as in GCC's and LLVM's runtimes: call function(data) in each of a team of `threads` threads.
using Team = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Run the work on that runtime's threads from now on, or, with nullptr, on this module's own again. Threads of the
// runtime that still spin after another library's last call are then the same threads, so that nothing competes with
// them. A forked child, in which that runtime has no threads, uses this module's own again.
void use_team(Team team);

}  // namespace tss
