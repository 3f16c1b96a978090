#include "emulator/counts.h"

#include "emulator/fibers.h"

#if defined(TSS_TRACED)
#include <link.h>
#endif

namespace tss::emulator {

Counts counts;

std::vector<std::pair<std::string, std::uint64_t>> take_counts() {
    const Counts taken = std::exchange(counts, Counts());
    return {{"launches", taken.launches},
            {"blocks", taken.blocks},
            {"barriers", taken.barriers},
            {"multiply_adds", taken.multiply_adds},
            {"group_multiply_adds", taken.group_multiply_adds},
            {"copies", taken.copies},
            {"copied_bytes", taken.copied_bytes},
            {"matrix_loads", taken.matrix_loads},
            {"conflicts", taken.conflicts},
            {"exchanges", taken.exchanges},
            {"atomics", taken.atomics},
            {"read_bytes", taken.read_bytes},
            {"written_bytes", taken.written_bytes}};
}

#ifdef TSS_TRACED
namespace {

struct Span {
    const char *begin = nullptr, *end = nullptr;
    bool has(const void* address) const { return address >= begin && address < end; }
};

// The address range of this module, which holds threadIdx and similar variables.
Span module_span() {
    Span found;
    const auto visit = [](dl_phdr_info* info, std::size_t, void* result) {
        Span here;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& part = info->dlpi_phdr[i];
            if (part.p_type != PT_LOAD) continue;
            const char* start = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
            if (here.begin == nullptr || start < here.begin) here.begin = start;
            if (here.end == nullptr || start + part.p_memsz > here.end) here.end = start + part.p_memsz;
        }
        const bool ours = here.has(&counts);
        if (ours) *static_cast<Span*>(result) = here;
        return ours ? 1 : 0;
    };
    dl_iterate_phdr(visit, &found);
    return found;
}

void access(std::uint64_t& number, const void* address, std::size_t bytes) {
    static const Span module = module_span();
    if (runs_kernel() && !is_private(address) && !module.has(address)) number += bytes;
}

}  // namespace
#endif

}  // namespace tss::emulator

#ifdef TSS_TRACED
// The functions that the thread sanitizer calls at every access; its library is not linked.
#define TSS_ACCESS(bytes)                                                                                         \
    void __tsan_read##bytes(void* at) { tss::emulator::access(tss::emulator::counts.read_bytes, at, bytes); }     \
    void __tsan_write##bytes(void* at) { tss::emulator::access(tss::emulator::counts.written_bytes, at, bytes); } \
    void __tsan_unaligned_read##bytes(void* at) { __tsan_read##bytes(at); }                                       \
    void __tsan_unaligned_write##bytes(void* at) { __tsan_write##bytes(at); }

extern "C" {
TSS_ACCESS(1)
TSS_ACCESS(2)
TSS_ACCESS(4)
TSS_ACCESS(8)
TSS_ACCESS(16)
void __tsan_read_range(void* at, std::size_t bytes) { tss::emulator::access(tss::emulator::counts.read_bytes, at, bytes); }
void __tsan_write_range(void* at, std::size_t bytes) { tss::emulator::access(tss::emulator::counts.written_bytes, at, bytes); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
#endif
