// Counting sort: linear in the number of entries and tasks.
#include "task_order.h"

#include <cstddef>

namespace tss {

std::vector<int64_t> order_by_task(const int64_t* task_ids, int64_t entries, int64_t tasks, int64_t* outside) {
    std::vector<int64_t> next(static_cast<std::size_t>(tasks) + 1, 0);  // where the next entry of each task goes
    for (int64_t entry = 0; entry < entries; ++entry) {
        const int64_t task = task_ids[entry];
        if (task < 0 || task >= tasks) {
            *outside = entry;
            return {};
        }
        ++next[static_cast<std::size_t>(task) + 1];
    }
    for (std::size_t task = 1; task < next.size(); ++task) next[task] += next[task - 1];
    std::vector<int64_t> order(static_cast<std::size_t>(entries));
    for (int64_t entry = 0; entry < entries; ++entry)
        order[static_cast<std::size_t>(next[static_cast<std::size_t>(task_ids[entry])]++)] = entry;
    *outside = -1;
    return order;
}

}  // namespace tss
