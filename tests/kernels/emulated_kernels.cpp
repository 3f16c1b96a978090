// Runs one kernel of each kind on the emulator, in both orders of threads, on whole numbers, whose sums are exact in any
// order. Prints by name how many elements of the result are right, NaN, or wrong, and how many rows of matrices waited for
// memory banks: for tests that plant faults. With TSS_ONLY_PRODUCTS it compiles faster.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/gated_linear.cuh"
#ifndef TSS_ONLY_PRODUCTS
#include "cuda/gated_adapter.cuh"
#include "cuda/multi_task.cu"
#include "cuda/scores_grad.cuh"
#endif

using namespace tss;

namespace {

using T = bfloat16;
constexpr int rows = 150, in = 320, out = 100, units = 64;

// Whole numbers from -2 to 2, by a generator without a state that tests would share.
template <class V>
std::vector<V> drawn(std::size_t size, unsigned seed) {
    std::vector<V> values(size);
    for (auto& value : values) {
        seed = seed * 1664525u + 1013904223u;
        if constexpr (std::is_same_v<V, T>) value = to_bfloat16(float(int((seed >> 16) % 5) - 2));
        else value = V(seed >> 24);
    }
    return values;
}

struct Tally { long right = 0, nan = 0, wrong = 0; };

void add(Tally& tally, float found, double exact) {
    if (std::isnan(found)) ++tally.nan;
    else if (found == to_float(to_bfloat16(float(exact)))) ++tally.right;
    else ++tally.wrong;
}

bool on(const std::vector<std::uint8_t>& packed, int row_bytes, int row, int column) {
    return packed[row * row_bytes + column / 8] >> (column % 8) & 1;
}

// With range_tiles the sums of ranges of so many k tiles, added here.
template <class Tile>
Tally product(int range_tiles = 0) {
    const auto x = drawn<T>(rows * in, 1), weight = drawn<T>(out * in, 2);
    const auto packed = drawn<std::uint8_t>(out * in / 8, 3);
    std::vector<T> y(rows * out, T{0xFFFF});
    ProductOperands<T> operands{{x.data(), rows, in, in, 1}, weight.data(), out, in, bits_at(packed.data(), out, in), nullptr,
                                0.0f, nullptr, nullptr, y.data(), false};
    using S = Stage<Tile, Operand::weight>;
    const auto blocks = divide_up(out, Tile::m) * divide_up(rows, Tile::n);
    const int ranges = range_tiles == 0 ? 1 : static_cast<int>(divide_up(divide_up(in, k_tile), range_tiles));
    std::vector<float> partial(range_tiles == 0 ? 0 : ranges * rows * out, NAN);
    if (range_tiles != 0) operands.partial = partial.data();
    operands.range_tiles = range_tiles;
    operands.range_blocks = static_cast<unsigned>(blocks);
    launch(gated_product_kernel<T, Tile, false, false, true>, blocks * ranges, Tile::threads,
           max(S::shared_bytes(), staged_bytes<Tile>()), Target{}, operands);
    for (int at = 0; range_tiles != 0 && at < rows * out; ++at) {
        float sum = 0.0f;
        for (int range = 0; range < ranges; ++range) sum += partial[range * rows * out + at];
        y[at] = to_bfloat16(sum);
    }
    Tally tally;
    for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < out; ++column) {
            double sum = 0.0;
            for (int k = 0; k < in; ++k) {
                if (on(packed, in / 8, column, k)) sum += to_float(x[row * in + k]) * to_float(weight[column * in + k]);
            }
            add(tally, to_float(y[row * out + column]), sum);
        }
    }
    return tally;
}

#ifndef TSS_ONLY_PRODUCTS
Tally adapter() {
    using Tile = AdapterTile<64, 64, 2, 4, 2, 4, 4>;
    const auto x = drawn<T>(rows * in, 4), down = drawn<T>(units * in, 5), up = drawn<T>(in * units, 6);
    const auto down_packed = drawn<std::uint8_t>(units * in / 8, 7), up_packed = drawn<std::uint8_t>(in * units / 8, 8);
    std::vector<T> y(rows * in, T{0xFFFF}), hidden(rows * units, T{0xFFFF});
    const AdapterOperands<T, T> operands{
        {x.data(), rows, in, in, 1}, {down.data(), units, in, in, 1}, {up.data(), in, units, units, 1},
        bits_at(down_packed.data(), units, in), bits_at(up_packed.data(), in, units), nullptr, nullptr, y.data(), hidden.data(),
        nullptr, Activation::relu, true, true, true, true, true};
    launch(gated_adapter_kernel<T, T, Tile, false>, divide_up(rows, Tile::rows), Tile::threads, Tile::shared_bytes(), Target{}, operands);
    Tally tally;
    for (int row = 0; row < rows; ++row) {
        std::vector<double> active(units);
        for (int unit = 0; unit < units; ++unit) {
            double sum = 0.0;
            for (int k = 0; k < in; ++k) {
                if (on(down_packed, in / 8, unit, k)) sum += to_float(x[row * in + k]) * to_float(down[unit * in + k]);
            }
            active[unit] = to_float(to_bfloat16(std::fmax(float(sum), 0.0f)));
        }
        for (int column = 0; column < in; ++column) {
            double sum = to_float(x[row * in + column]);
            for (int unit = 0; unit < units; ++unit) {
                if (on(up_packed, units / 8, column, unit)) sum += active[unit] * to_float(up[column * units + unit]);
            }
            add(tally, to_float(y[row * in + column]), sum);
        }
    }
    return tally;
}

// One row of each entry; more entries than the kernel that groups them takes at a time, of tasks in no order, and one of none.
Tally many_tasks() {
    constexpr int entries = 300, tasks = 3, room = 4096;  // on both sides of the order, for faults that miscount
    const auto x = drawn<T>(entries * in, 11), weight = drawn<T>(out * in, 12);
    const auto bank = drawn<std::uint8_t>(tasks * out * in / 8, 13), chosen = drawn<std::uint8_t>(entries, 14);
    std::vector<std::int64_t> ids(chosen.begin(), chosen.end()), order(entries + 2 * room, -1);
    for (auto& id : ids) id %= tasks;
    ids[7] = tasks;
    const std::int64_t count = entries / group_tile_rows(Dtype::bfloat16) + tasks + 1;
    std::vector<std::int64_t> tiles(3 * count, -1);
    std::vector<T> y(entries * out, T{0xFFFF});
    group_by_task({ids.data(), entries, 1, tasks, order.data() + room, tiles.data()}, Dtype::bfloat16, Target{});
    multi_task_product({x.data(), in, 1, weight.data(), out, in, bank.data(), out * in / 8, nullptr, y.data(), false, true, -1,
                        nullptr, nullptr, 0, 0, false, order.data() + room, tiles.data(), count, 1},
                       Dtype::bfloat16, Target{});
    Tally tally;
    for (int row = 0; row < entries; ++row) {
        for (int column = 0; column < out; ++column) {
            const float found = to_float(y[row * out + column]);
            if (ids[row] == tasks) {
                ++(std::isnan(found) ? tally.right : tally.wrong);
                continue;
            }
            double sum = 0.0;
            for (int k = 0; k < in; ++k) {
                const bool gate = on(bank, in / 8, static_cast<int>(ids[row]) * out + column, k);
                if (gate) sum += to_float(x[row * in + k]) * to_float(weight[column * in + k]);
            }
            add(tally, found, sum);
        }
    }
    return tally;
}

Tally gradient() {
    using Tile = ProductTile<64, 128, 1, 4, 3>;
    const int features = 104;  // a multiple of eight
    const auto dy = drawn<T>(rows * features, 9), x = drawn<T>(rows * in, 10);
    const std::vector<T> ones(features * in, to_bfloat16(1.0f));
    std::vector<float> grad(features * in, NAN);
    const ScoresGradOperands<T> operands{{dy.data(), rows, features, features, 1}, {x.data(), rows, in, in, 1}, ones.data(), nullptr,
                                         grad.data(), nullptr, 192};
    launch(scores_grad_kernel<T, Tile, true>, divide_up(features, Tile::m) * divide_up(in, Tile::n), Tile::threads,
           Stage<Tile, Operand::plain_transposed>::shared_bytes(), Target{}, operands);
    Tally tally;
    for (int one = 0; one < features; ++one) {
        for (int other = 0; other < in; ++other) {
            double sum = 0.0;
            for (int row = 0; row < rows; ++row) sum += to_float(dy[row * features + one]) * to_float(x[row * in + other]);
            const float found = grad[one * in + other];
            if (std::isnan(found)) ++tally.nan;
            else ++(found == float(sum) ? tally.right : tally.wrong);
        }
    }
    return tally;
}
#endif

void say(const char* name, const Tally& tally) {
    const auto conflicts = static_cast<long>(emulator::counts.conflicts);
    emulator::take_counts();
    std::printf("%s %ld right %ld NaN %ld wrong %ld conflicts\n", name, tally.right, tally.nan, tally.wrong, conflicts);
}

}  // namespace

int main() {
    for (const char* order : {"forward", "reverse"}) {
        setenv("TSS_EMULATED_ORDER", order, 1);
        say("groups", product<ProductTile<64, 128, 4, 1, 3, true>>());
        say("mma", product<ProductTile<64, 32, 2, 2, 3>>());
        say("ranges", product<ProductTile<64, 32, 2, 2, 3>>(2));
#ifndef TSS_ONLY_PRODUCTS
        say("adapter", adapter());
        say("many_tasks", many_tasks());
        say("scores_grad", gradient());
#endif
    }
}
