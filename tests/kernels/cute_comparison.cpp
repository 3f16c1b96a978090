// The kernels' own index arithmetic, and the emulator's instructions, against CuTe's account of them.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/product.cuh"
#include "cute_tables.h"

using namespace tss;

namespace {

using Wide = ProductTile<128, 128, 2, 4, 3>;
using Groups = ProductTile<128, 128, 8, 1, 3, true>;
long equal = 0, different = 0;

void expect(long ours, long theirs, const char* what) {
    if (ours == theirs) ++equal;
    else if (++different < 20) std::printf("%s: %ld, CuTe has %ld\n", what, ours, theirs);
}

template <int rows>
int in_tile(int row, int column) {
    return tile_offset<rows>(row, column & ~7) + column % 8 * 2;
}

void shared_tiles() {
    for (int i = 0; i < 128; ++i) {
        for (int j = 0; j < 64; ++j) {
            expect(in_tile<128>(i, j), tile_128x64[i][j], "panel");
            expect(in_tile<64>(j, i), tile_64x128[j][i], "two panels");
        }
    }
}

// What ldmatrix takes from a lane's own addresses are the fragments that mma wants.
void fragments() {
    for (int k = 0; k < 64; k += 16) {
        for (int m = 0; m < 64; m += 16) {
            for (int lane = 0; lane < 32; ++lane) {
                for (int h = 0; h < 8; ++h) {
                    const int who = ldmatrix[lane][h][0], at = 2 * ldmatrix[lane][h][1];
                    const int turned = ldmatrix_transposed[lane][h][0], there = 2 * ldmatrix_transposed[lane][h][1];
                    const int am = m + mma_a[lane][h][0], ak = k + mma_a[lane][h][1];
                    const int bn = m + 8 * (h / 4) + mma_b[lane][h % 4][0], bk = k + mma_b[lane][h % 4][1];
                    expect(piece_offset<64>(m, k, who % 16, who / 16 * 8) + at, in_tile<64>(am, ak), "load_a");
                    expect(piece_offset<64>(k, m, turned / 16 * 8 + turned % 8, turned / 8 % 2 * 8) + there, in_tile<64>(ak, am),
                           "load_a_transposed");
                    expect(piece_offset<64>(m, k, who / 16 * 8 + who % 8, who / 8 % 2 * 8) + at, in_tile<64>(bn, bk), "load_b");
                    expect(piece_offset<64>(k, m, turned % 16, turned / 16 * 8) + there, in_tile<64>(bk, bn), "load_b_transposed");
                    expect(stmatrix_transposed[lane][h][0], turned, "stores mirror loads");
                    expect(2 * stmatrix_transposed[lane][h][1], there, "stores mirror loads");
                }
            }
        }
    }
}

template <class Tile, class Table>
void sums(const Table& table, int of_group, const char* what) {
    for (unsigned thread = 0; thread < Tile::threads; ++thread) {
        threadIdx = dim3(thread);
        const int lane = thread % of_group, group = Tile::warpgroups ? thread / of_group * 64 : Tile::first_m();
        Sums<Tile> held;
        for (int i = 0; i < Tile::pieces_m; ++i) {
            for (int j = 0; j < Tile::pieces_n * 4; ++j) held.values[i][j] = float(1000 * i + j);
        }
        held.each([&](int m, int n, float number) {
            const int i = int(number) / 1000, j = int(number) % 1000, value = Tile::warpgroups ? j : j % 4;
            expect(m, group + 16 * i + table[lane][value][0], what);
            expect(n, Tile::first_n() + (Tile::warpgroups ? 0 : 8 * (j / 4)) + table[lane][value][1], what);
        });
        for (int h = 0; Tile::warpgroups && h < 8; ++h) {
            expect(Tile::first_m() + mma_a[thread % 32][h][0], group + wgmma_a[lane][h][0], "a of a warpgroup");
            expect(mma_a[thread % 32][h][1], wgmma_a[lane][h][1], "a of a warpgroup");
        }
    }
}

// Every gate alone leaves exactly the element that CuTe has at its place.
template <int words>
void masks() {
    for (int m = 0; m < 64; m += 16) {
        for (int k = 0; k < 64; k += 16) {
            for (int place = 0; place < 512; ++place) {
                const bool turned = place >= 256;
                const int mm = place / 16 % 16, kk = place % 16, row = turned ? k + kk : m + mm, column = turned ? m + mm : k + kk;
                unsigned gates[64 * words] = {};
                gates[row * words + column / 32] = 1u << (column % 32);
                for (unsigned lane = 0; lane < 32; ++lane) {
                    threadIdx = dim3(lane);
                    unsigned a[4] = {~0u, ~0u, ~0u, ~0u};
                    if (turned) mask_a_transposed<words>(a, gates, m, k);
                    else mask_a<words>(a, gates, m, k);
                    for (int h = 0; h < 8; ++h) {
                        const bool on = mma_a[lane][h][0] == mm && mma_a[lane][h][1] == kk;
                        expect(a[h / 2] >> (16 * (h % 2)) & 0xFFFF, on ? 0xFFFF : 0, turned ? "mask_a_transposed" : "mask_a");
                    }
                }
            }
        }
    }
}

int drawn(int row, int k, int seed) { return (row * 31 + k * 17 + row * k * 7 + seed) % 5 - 2; }
unsigned half(int value) { return to_bfloat16(float(value)).bits; }
template <class Table>
void hold(unsigned (&registers)[4], const Table& table, int lane, int k, int seed) {
    for (int h = 0; h < 8; ++h) registers[h / 2] |= half(drawn(table[lane][h][0], k + table[lane][h][1], seed)) << (16 * (h % 2));
}
int exact(int m, int n, int depth) {
    int sum = 0;
    for (int k = 0; k < depth; ++k) sum += drawn(m, k, 1) * drawn(n, k, 2);
    return sum;
}

// The emulated instructions, fed and read as CuTe says.
void instructions() {
    emulator::run(dim3(1), dim3(32), 1024, [] {
        const int lane = threadIdx.x;
        unsigned a[4] = {}, b[2] = {};
        hold(a, mma_a, lane, 0, 1);
        for (int h = 0; h < 4; ++h) b[h / 2] |= half(drawn(mma_b[lane][h][0], mma_b[lane][h][1], 2)) << (16 * (h % 2));
        float d[4] = {};
        multiply_16816<bfloat16>(d, a, b);
        for (int v = 0; v < 4; ++v) expect(long(d[v]), exact(mma_c[lane][v][0], mma_c[lane][v][1], 16), "mma");
        auto* memory = reinterpret_cast<std::uint16_t*>(dynamic_shared());
        unsigned numbers[4], back[4];
        for (int h = 0; h < 8; h += 2) numbers[h / 2] = (8 * lane + h) | (8 * lane + h + 1) << 16;
        store_matrices_transposed(memory + 8 * lane, numbers);
        __syncthreads();
        for (int h = 0; h < 8; ++h) {
            expect(memory[8 * stmatrix_transposed[lane][h][0] + stmatrix_transposed[lane][h][1]], 8 * lane + h, "stmatrix");
        }
        load_matrices<false>(back, memory + 8 * lane);
        for (int h = 0; h < 8; ++h) {
            expect(back[h / 2] >> (16 * (h % 2)) & 0xFFFF, memory[8 * ldmatrix[lane][h][0] + ldmatrix[lane][h][1]], "ldmatrix");
        }
    });
    emulator::run(dim3(1), dim3(128), 128 * 64 * 2, [] {
        const int thread = threadIdx.x;
        char* tile = dynamic_shared();
        for (int k = 0; k < 64; ++k) *reinterpret_cast<std::uint16_t*>(tile + tile_128x64[thread][k]) = half(drawn(thread, k, 2));
        __syncthreads();
        unsigned a[4][4] = {};
        float d[64] = {};
        warpgroup_arrive();
        for (int step = 0; step < 4; ++step) {
            hold(a[step], wgmma_a, thread, 16 * step, 1);
            expect(shared_descriptor(tile + 32 * step), descriptor + 2 * step, "descriptor");
            warpgroup_multiply<bfloat16, 128>(d, a[step], descriptor + 2 * step);
        }
        warpgroup_commit();
        warpgroup_wait<0>();
        for (int v = 0; v < 64; ++v) expect(long(d[v]), exact(wgmma_c[thread][v][0], wgmma_c[thread][v][1], 64), "wgmma");
    });
}

}  // namespace

int main() {
    shared_tiles();
    fragments();
    sums<Wide>(mma_c, 32, "sums");
    sums<Groups>(wgmma_c, 128, "sums of a warpgroup");
    masks<2>();
    masks<4>();
    instructions();
    std::printf("%ld equal, %ld different\n", equal, different);
    return different != 0;
}
