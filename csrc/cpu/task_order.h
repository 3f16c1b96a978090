// The entries of a batch in the order of their tasks.
#pragma once

#include <cstdint>
#include <vector>

namespace tss {

// Numbers of entries, those of one task one after the other. Empty, with `outside` the first entry whose task is not from
// 0 up to `tasks`, if there is one; else `outside` is -1.
std::vector<int64_t> order_by_task(const int64_t* task_ids, int64_t entries, int64_t tasks, int64_t* outside);

}  // namespace tss
