// The entries of a batch in the order of their tasks.
#pragma once

#include <cstdint>
#include <vector>

namespace tss {

// Return the indices of the entries, those of one task one after the other, and set `outside` to -1. If the task of an
// entry is not in [0, tasks), return an empty vector and set `outside` to the first such entry.
std::vector<int64_t> order_by_task(const int64_t* task_ids, int64_t entries, int64_t tasks, int64_t* outside);

}  // namespace tss
