// Choice of the compiled set of kernels that runs on this processor.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace tss {

namespace portable {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

struct Available {
    const Kernels* tables[3];
    int count = 0;

    Available() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool avx2_runs =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        if (avx2_runs && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            tables[count++] = &avx512::table;
        if (avx2_runs) tables[count++] = &avx2::table;
#endif
        tables[count++] = &portable::table;
    }
};

const Available& available() {
    static const Available found;
    return found;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
    const Kernels* table = chosen.load(std::memory_order_relaxed);
    return table != nullptr ? *table : *available().tables[0];
}

const Kernels* const* available_kernels(int* count) {
    *count = available().count;
    return available().tables;
}

bool use_kernels(const char* name) {
    for (int i = 0; i < available().count; ++i) {
        if (std::strcmp(available().tables[i]->name, name) != 0) continue;
        chosen.store(available().tables[i], std::memory_order_relaxed);
        return true;
    }
    return false;
}

}  // namespace tss
