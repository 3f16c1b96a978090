#include "emulator/fibers.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/asynchronous.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tss::emulator {
namespace {

constexpr std::size_t stack_bytes = 256 * 1024;
constexpr std::size_t argument_bytes = 256 * 1024;  // more than stack frames with a kernel's largest arguments take
constexpr unsigned warp_size = 32;

struct Barrier {
    unsigned expected = 0, arrived = 0, generation = 0;
};

#if defined(__x86_64__)
using Context = void*;
#else
using Context = ucontext_t;
#endif

struct Fiber {
    Context context{};
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    void* fake_stack = nullptr;  // what the address sanitizer stores for a fiber that does not run
    unsigned number = 0;
    bool done = false;
    const Barrier* waits_for = nullptr;
    unsigned generation = 0;
};

struct Warp {
    Barrier barrier;
    unsigned exchanges[warp_size] = {};
    alignas(16) char buffers[2][warp_size * slot_bytes];
};

struct Block {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    Barrier barrier;
    char* shared = nullptr;
    std::size_t shared_bytes = 0;
    Fiber* current = nullptr;
    Context scheduler{};
    void* scheduler_fake_stack = nullptr;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_bytes = 0;
    void (*body)(const void*) = nullptr;
    const void* context = nullptr;
    const char* arguments = nullptr;  // they are on the caller's stack, from here upwards
};

Block block;
std::mutex one_launch;

#if defined(__x86_64__)
extern "C" void tss_emulator_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type tss_emulator_switch, @function
tss_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size tss_emulator_switch, . - tss_emulator_switch
)");
void jump(Context& from, Context& to) { tss_emulator_switch(&from, to); }
#else
void jump(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

void start_switch([[maybe_unused]] void** keep, [[maybe_unused]] const void* stack, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(keep, stack, bytes);
#endif
}

void finish_switch([[maybe_unused]] void* kept, [[maybe_unused]] const void** stack, [[maybe_unused]] std::size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(kept, stack, bytes);
#endif
}

void yield(bool last = false) {
    Fiber* self = block.current;
    start_switch(last ? nullptr : &self->fake_stack, block.scheduler_stack, block.scheduler_stack_bytes);
    jump(self->context, block.scheduler);
    finish_switch(self->fake_stack, &block.scheduler_stack, &block.scheduler_stack_bytes);
}

void fiber_main() {
    finish_switch(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
    block.body(block.context);
    block.current->done = true;
    yield(true);
    std::abort();  // a finished thread is not resumed
}

void prepare(Fiber& fiber) {
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack.get(), stack_bytes);
#endif
#if defined(__x86_64__)
    auto top = (reinterpret_cast<std::uintptr_t>(fiber.stack.get()) + stack_bytes) & ~std::uintptr_t(15);
    auto* words = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, and a return address that is not used
    std::memset(words, 0, 8 * sizeof(void*));
    words[6] = reinterpret_cast<void*>(&fiber_main);
    fiber.context = words;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &fiber_main, 0);
#endif
}

void resume(Fiber& fiber) {
    block.current = &fiber;
    unsigned number = fiber.number;
    threadIdx = dim3(number % blockDim.x, number / blockDim.x % blockDim.y, number / (blockDim.x * blockDim.y));
    start_switch(&block.scheduler_fake_stack, fiber.stack.get(), stack_bytes);
    jump(block.scheduler, fiber.context);
    finish_switch(block.scheduler_fake_stack, nullptr, nullptr);
    block.current = nullptr;
}

bool runnable(const Fiber& fiber) {
    return !fiber.done && (fiber.waits_for == nullptr || fiber.waits_for->generation != fiber.generation);
}

void arrive_and_wait(Barrier& barrier) {
    Fiber* self = block.current;
    self->generation = barrier.generation;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    self->waits_for = &barrier;
    yield();
    self->waits_for = nullptr;
}

bool reversed() {
    const char* order = std::getenv("TSS_EMULATED_ORDER");
    return order != nullptr && std::string(order) == "reverse";
}

void run_block(unsigned threads) {
    for (unsigned number = 0; number < threads; ++number) prepare(*block.fibers[number]);
    start_asynchronous(threads, block.shared_bytes);
    block.barrier = Barrier{threads};
    block.warps.assign((threads + warp_size - 1) / warp_size, Warp{});
    for (unsigned warp = 0; warp < block.warps.size(); ++warp) {
        block.warps[warp].barrier.expected = std::min(warp_size, threads - warp * warp_size);
    }
    if (block.shared_bytes > 0) std::memset(block.shared, 0xFF, block.shared_bytes);
    const bool backwards = reversed();
    for (unsigned left = threads; left > 0;) {
        bool moved = false;
        // A warp runs as far as it can before the next one starts, so that what it does too early shows: other warps
        // are still behind.
        for (unsigned turn = 0; turn < block.warps.size(); ++turn) {
            const unsigned warp = backwards ? static_cast<unsigned>(block.warps.size()) - 1 - turn : turn;
            const unsigned first = warp * warp_size, count = std::min(warp_size, threads - first);
            for (bool warp_moved = true; warp_moved;) {
                warp_moved = false;
                for (unsigned lane = 0; lane < count; ++lane) {
                    Fiber& fiber = *block.fibers[first + (backwards ? count - 1 - lane : lane)];
                    if (!runnable(fiber)) continue;
                    resume(fiber);
                    moved = warp_moved = true;
                    if (fiber.done) --left;
                }
            }
        }
        if (!moved) {
            throw std::runtime_error("emulated kernel: " + std::to_string(left) + " threads of a block wait forever, "
                                     "because some passed another barrier or left");
        }
    }
}

}  // namespace

void run(dim3 grid, dim3 threads, std::size_t shared, void (*body)(const void*), const void* context) {
    std::lock_guard<std::mutex> only(one_launch);
    const unsigned count = threads.x * threads.y * threads.z;
    while (block.fibers.size() < count) {
        block.fibers.push_back(std::make_unique<Fiber>());
        block.fibers.back()->number = static_cast<unsigned>(block.fibers.size()) - 1;
    }
    // Swizzled layouts are functions of address bits, relative to an alignment of 1,024 bytes.
    void* memory = nullptr;
    if (shared > 0 && posix_memalign(&memory, 1024, shared) != 0) throw std::bad_alloc();
    std::unique_ptr<void, void (*)(void*)> owner(memory, std::free);
    block.shared = static_cast<char*>(memory);
    block.shared_bytes = shared;
    block.body = body;
    block.context = context;
    block.arguments = reinterpret_cast<const char*>(&only);
    blockDim = threads;
    gridDim = grid;
    ++counts.launches;
    counts.blocks += std::uint64_t(grid.x) * grid.y * grid.z;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                run_block(count);
            }
        }
    }
}

void block_barrier() {
    counts.barriers += block.barrier.arrived == 0;
    arrive_and_wait(block.barrier);
}

void warp_barrier() { arrive_and_wait(block.warps[block.current->number / warp_size].barrier); }

char* shared_memory() { return block.shared; }

bool runs_kernel() { return block.current != nullptr; }

bool is_private(const void* address) {
    const char* at = static_cast<const char*>(address);
    const auto within = [at](const void* begin, std::size_t bytes) {
        return at >= begin && at < static_cast<const char*>(begin) + bytes;
    };
    return within(block.current->stack.get(), stack_bytes) || within(block.shared, block.shared_bytes) ||
           within(block.warps.data(), block.warps.size() * sizeof(Warp)) || within(block.arguments, argument_bytes);
}

unsigned thread_number() { return block.current->number; }

unsigned lane() { return block.current->number % warp_size; }

char* next_exchange_buffer() {
    Warp& warp = block.warps[block.current->number / warp_size];
    return warp.buffers[warp.exchanges[lane()]++ % 2];
}

}  // namespace tss::emulator
