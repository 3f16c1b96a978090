// Work shared out among a few threads that sleep between calls.
#pragma once

#include <cstdint>

namespace tss {

// Does the units from begin up to end.
using Body = void (*)(void* context, int64_t begin, int64_t end);

// Has all units done, `grain` of them at a time, by at most `threads` threads, the calling one among them. Which thread
// does which unit is open, so that no result may depend on it. May be called from several threads at once.
void parallel_for(int64_t units, int64_t grain, int threads, Body body, void* context);

}  // namespace tss
