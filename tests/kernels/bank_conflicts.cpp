// Runs kernels on the emulator and prints, by kernel and kind of access to shared memory, how many instructions of a warp
// there were and how many further turns the 32 banks took over what the widths of the accesses need. Compiled as for the
// thread sanitizer, whose calls are answered here: one lane's n-th access by an instruction belongs to the other lanes' n-th.
// Accesses of two bytes are the emulator's own, of ldmatrix, stmatrix and wgmma, whose conflicts it counts itself.
#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "cuda/float32_product.cu"
#include "cuda/gated_adapter.cuh"
#include "cuda/gated_linear.cuh"
#include "cuda/importance.cu"
#include "cuda/scores_grad.cuh"

namespace {

enum Kind { reading, writing, copying };
using Instruction = std::tuple<Kind, std::size_t, unsigned, const void*, unsigned>;  // bytes, warp, where, how many before

std::size_t shared_size = 0;
std::map<Instruction, std::vector<std::pair<unsigned, std::size_t>>> accesses;  // by lane
std::map<std::pair<unsigned, const void*>, unsigned> before;                     // by thread of a block

}  // namespace

extern "C" {
// Not watched itself.
__attribute__((no_sanitize("thread"))) static void note(Kind kind, const void* at, std::size_t bytes, const void* where) {
    if (!tss::emulator::runs_kernel() || bytes < 4 || blockIdx.x != 0) return;  // every block is like the first
    const auto offset = static_cast<const char*>(at) - tss::emulator::shared_memory();
    if (offset < 0 || offset >= static_cast<std::ptrdiff_t>(shared_size)) return;
    const unsigned thread = tss::emulator::thread_number(), turn = before[{thread, where}]++;
    accesses[{kind, bytes, thread / 32, where, turn}].push_back({thread % 32, static_cast<std::size_t>(offset)});
}
#define TSS_WATCHED(bytes)                                                                                            \
    void __tsan_read##bytes(void* at) { note(reading, at, bytes, __builtin_return_address(0)); }                      \
    void __tsan_write##bytes(void* at) { note(writing, at, bytes, __builtin_return_address(0)); }                     \
    void __tsan_unaligned_read##bytes(void* at) { note(reading, at, bytes, __builtin_return_address(0)); }            \
    void __tsan_unaligned_write##bytes(void* at) { note(writing, at, bytes, __builtin_return_address(0)); }
TSS_WATCHED(1)
TSS_WATCHED(2)
TSS_WATCHED(4)
TSS_WATCHED(8)
TSS_WATCHED(16)
void __tsan_read_range(void*, std::size_t) {}
void __tsan_write_range(void*, std::size_t) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// The linker sends the kernels' asynchronous copies here (--wrap).
void __real__ZN3tss8emulator12promise_copyEPvPKvjj(void*, const void*, unsigned, unsigned);
void __wrap__ZN3tss8emulator12promise_copyEPvPKvjj(void* target, const void* source, unsigned bytes, unsigned valid) {
    note(copying, target, bytes, __builtin_return_address(0));
    __real__ZN3tss8emulator12promise_copyEPvPKvjj(target, source, bytes, valid);
}
}

namespace {

using namespace tss;
using T = bfloat16;

// Turns that the banks take: words of 4 bytes in the same bank wait for each other, the same word serves all who read it.
// Accesses of 8 and 16 bytes are served for a half and a quarter of the warp at a time.
unsigned turns(std::vector<std::pair<unsigned, std::size_t>> lanes, std::size_t bytes) {
    unsigned taken = 0;
    const unsigned together = static_cast<unsigned>(32 / std::max<std::size_t>(1, bytes / 4));
    for (unsigned first = 0; first < 32; first += together) {
        std::map<std::size_t, std::set<std::size_t>> banks;
        for (const auto& [lane, offset] : lanes) {
            if (lane < first || lane >= first + together) continue;
            for (std::size_t word = offset / 4; word < (offset + bytes) / 4; ++word) banks[word % 32].insert(word);
        }
        std::size_t most = 0;
        for (const auto& bank : banks) most = std::max(most, bank.second.size());
        taken += static_cast<unsigned>(most > 0 ? most - 1 : 0);
    }
    return taken;
}

void say(const char* kernel) {
    const char* names[] = {"read", "write", "copy"};
    std::map<std::pair<Kind, std::size_t>, std::pair<unsigned, unsigned>> found;
    for (const auto& [instruction, lanes] : accesses) {
        auto& [count, further] = found[{std::get<0>(instruction), std::get<1>(instruction)}];
        ++count;
        further += turns(lanes, std::get<1>(instruction));
    }
    for (const auto& [kind, counted] : found) {
        std::printf("%s %s %zu bytes: %u accesses, %u further turns\n", kernel, names[kind.first], kind.second, counted.first,
                    counted.second);
    }
    accesses.clear();
    before.clear();
}

constexpr int rows = 128, in = 128, out = 128, units = 64;
const std::vector<T> x(rows * in, T{0}), weight(out * in, T{0});
const std::vector<std::uint8_t> packed(out * in / 8, 0);
std::vector<T> y(rows * out, T{0}), hidden(rows * units, T{0});
const std::vector<float> singles(rows * in, 0.0f);
std::vector<float> grad(out * in, 0.0f);

template <class Tile, bool transposed>
void product(const char* name) {
    const ProductOperands<T> operands{{x.data(), rows, in, in, 1}, weight.data(), out, in, bits_at(packed.data(), out, in), nullptr,
                                      0.0f, nullptr, nullptr, y.data(), true};
    using S = Stage<Tile, transposed ? Operand::weight_transposed : Operand::weight>;
    shared_size = max(S::shared_bytes(), staged_bytes<Tile>());
    launch(gated_product_kernel<T, Tile, transposed, false, true>, divide_up(out, Tile::m) * divide_up(rows, Tile::n), Tile::threads,
           shared_size, Target{}, operands);
    say(name);
}

template <class Tile, bool backward>
void adapter(const char* name) {
    const AdapterOperands<T, T> operands{
        {x.data(), rows, in, in, 1}, {weight.data(), units, in, in, 1}, {weight.data(), in, units, units, 1},
        bits_at(packed.data(), units, in), bits_at(packed.data(), in, units), nullptr, nullptr, y.data(), hidden.data(),
        hidden.data(), Activation::relu, true, true, true, true, true};
    shared_size = Tile::shared_bytes();
    launch(gated_adapter_kernel<T, T, Tile, backward>, divide_up(rows, Tile::rows), Tile::threads, shared_size, Target{}, operands);
    say(name);
}

}  // namespace

int main() {
    product<ProductTile<64, 32, 2, 2, 3>, false>("small");
    product<ProductTile<64, 32, 2, 2, 3>, true>("small_transposed");
    product<ProductTile<128, 128, 8, 1, 3, true>, false>("wide_groups");
    product<ProductTile<128, 128, 8, 1, 3, true>, true>("wide_groups_transposed");
    adapter<AdapterTile<64, 64, 2, 4, 2, 4, 4>, false>("adapter");
    adapter<AdapterTile<64, 64, 2, 4, 2, 4, 4>, true>("adapter_backward");
    {
        using Tile = ProductTile<64, 128, 1, 4, 3>;
        const ScoresGradOperands<T> operands{{x.data(), rows, out, out, 1}, {x.data(), rows, in, in, 1}, weight.data(), nullptr,
                                             grad.data(), nullptr, rows};
        shared_size = Stage<Tile, Operand::plain_transposed>::shared_bytes();
        launch(scores_grad_kernel<T, Tile, true>, divide_up(out, Tile::m) * divide_up(in, Tile::n), Tile::threads, shared_size, Target{},
               operands);
        say("scores_grad");
    }
    {
        shared_size = float32_shared_bytes;
        gated_product_float32({singles.data(), rows, in, 1, singles.data(), out, in, const_cast<std::uint8_t*>(packed.data()), nullptr, 0.0f,
                               nullptr, grad.data(), false, Tiling::general, nullptr, 0},
                              Target{});
        say("float32");
    }
    {
        shared_size = shared_bytes;
        importance({singles.data(), Dtype::float32, grad.data(), Dtype::float32, nullptr, 1, rows * in, rows * in, false}, Target{});
        say("importance");
    }
}
