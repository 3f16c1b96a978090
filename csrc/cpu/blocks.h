// A matrix cut into blocks of columns, for threads to share. Included once for each instruction set.
#pragma once

#include <cstdint>

#include "numbers.h"
#include "threads.h"

namespace tss::TSS_ISA {
namespace {

// Elements that a thread takes at a time: for fewer, waking another thread does not pay.
constexpr int64_t share = 65536;

// Blocks of up to `block` columns of a matrix (rows, columns). Where rows are whole bytes of gates, they follow each
// other without a gap, packed as well as unpacked, and are treated as one long row.
struct Blocks {
    int64_t rows, columns, in_row;

    Blocks(int64_t rows_, int64_t columns_)
        : rows(columns_ % 8 == 0 ? 1 : rows_), columns(columns_ % 8 == 0 ? rows_ * columns_ : columns_) {
        in_row = (columns + block - 1) / block;
    }

    int64_t count() const { return rows * in_row; }
    int64_t widest() const { return columns < block ? columns : block; }

    // Call visit(element, byte, size) for the blocks from begin up to end: the start and the length of each block.
    template <class Visit>
    void each(int64_t begin, int64_t end, const Visit& visit) const {
        const int64_t row_bytes = (columns + 7) / 8;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t row = unit / in_row, column = unit % in_row * block;
            const int64_t size = columns - column < block ? columns - column : block;
            visit(row * columns + column, row * row_bytes + column / 8, size);
        }
    }

    template <class Visit>
    void share_out(int threads, const Visit& visit) const {
        if (count() == 0 || columns == 0) return;
        struct Context {
            const Blocks& blocks;
            const Visit& visit;
        } context{*this, visit};
        const int64_t grain = share / widest();
        parallel_for(
            count(), grain, threads,
            [](void* data, int64_t begin, int64_t end) {
                const Context& shared = *static_cast<Context*>(data);
                shared.blocks.each(begin, end, shared.visit);
            },
            &context);
    }
};

}  // namespace
}  // namespace tss::TSS_ISA
