// Work shared out among a few threads: those of a team from outside, or this module's own, which sleep between calls.
#pragma once

#include <cstdint>

namespace tss {

// Does the units from begin up to end.
using Body = void (*)(void* context, int64_t begin, int64_t end);

// Has all units done, `grain` of them at a time, by at most `threads` threads, the calling one among them. Which thread
// does which unit is open, so that no result may depend on it. May be called from several threads at once.
void parallel_for(int64_t units, int64_t grain, int threads, Body body, void* context);

// OpenMP's GOMP_parallel, as GCC's runtime and LLVM's have it: function(data) in each of a team of so many threads.
using Team = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Has the work done by that runtime's threads from now on, or, with nullptr, by this module's own again. Where another
// library's threads still spin after its last call, these are the same threads, and nothing competes with them. A forked
// child, in which that runtime has none, goes back to its own.
void use_team(Team team);

}  // namespace tss
