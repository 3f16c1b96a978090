// Packing gates to bits, unpacking them, and writing W * g to memory for a product of the vendor's library.
#include "cuda/gates.cuh"
#include "cuda/operations.h"

namespace tss {
namespace {

struct Pair {
    GateMatrix matrices[2];
};

template <class T>
__global__ void __launch_bounds__(gate_threads) pack_kernel(Pair pair, float threshold, bool aligned) {
    std::int64_t byte = std::int64_t(blockIdx.x) * gate_threads + threadIdx.x;
    const bool second = byte >= pair.matrices[0].bytes();
    const GateMatrix matrix = second ? pair.matrices[1] : pair.matrices[0];
    if (second) byte -= pair.matrices[0].bytes();
    if (byte >= matrix.bytes()) return;
    const ByteOfGates at(byte, matrix.columns);
    float scores[gates_of_byte];
    load_eight(static_cast<const T*>(matrix.scores) + at.first, at.valid, aligned, scores, NAN);
    matrix.packed[byte] = static_cast<std::uint8_t>(bits_of(scores, bound_of<T>(threshold)));
}

__global__ void __launch_bounds__(gate_threads) unpack_kernel(GateMatrix matrix, bool* gates, bool aligned) {
    const std::int64_t byte = std::int64_t(blockIdx.x) * gate_threads + threadIdx.x;
    if (byte >= matrix.bytes()) return;
    const ByteOfGates at(byte, matrix.columns);
    const unsigned bits = matrix.packed[byte];
    if (aligned && at.valid == gates_of_byte) {
        unsigned halves[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned four = bits >> (4 * half);
            halves[half] = (four & 1) | (four & 2) << 7 | (four & 4) << 14 | (four & 8) << 21;
        }
        *reinterpret_cast<uint2*>(gates + at.first) = uint2{halves[0], halves[1]};
    } else {
        for (int i = 0; i < at.valid; ++i) gates[at.first + i] = bits >> i & 1;
    }
}

// kFromScores: gates are compared and, as a by-product, packed; else they are read as bits. `Word` only has the size of
// W's elements: a weight is kept or becomes 0 whatever its value.
template <class Word, bool kFromScores>
__global__ void __launch_bounds__(gate_threads)
    mask_kernel(GateMatrix matrix, const Word* weight, Word* masked, float threshold, bool aligned) {
    const std::int64_t byte = std::int64_t(blockIdx.x) * gate_threads + threadIdx.x;
    if (byte >= matrix.bytes()) return;
    const ByteOfGates at(byte, matrix.columns);
    unsigned bits;
    if constexpr (kFromScores) {
        float scores[gates_of_byte];
        load_eight(static_cast<const float*>(matrix.scores) + at.first, at.valid, aligned, scores, NAN);
        bits = bits_of(scores, threshold);
        matrix.packed[byte] = static_cast<std::uint8_t>(bits);
    } else {
        bits = matrix.packed[byte];
    }
    if (aligned && at.valid == gates_of_byte) {
        constexpr int elements = 16 / sizeof(Word);  // of 16 bytes
#pragma unroll
        for (int part = 0; part < gates_of_byte / elements; ++part) {
            uint4 four = reinterpret_cast<const uint4*>(weight + at.first)[part];
            const int position = part * elements, next = elements / 4;
            four.x = select<sizeof(Word)>(four.x, bits, position);
            four.y = select<sizeof(Word)>(four.y, bits, position + next);
            four.z = select<sizeof(Word)>(four.z, bits, position + 2 * next);
            four.w = select<sizeof(Word)>(four.w, bits, position + 3 * next);
            store_16(reinterpret_cast<uint4*>(masked + at.first) + part, four);
        }
    } else {
        for (int i = 0; i < at.valid; ++i) masked[at.first + i] = bits >> i & 1 ? weight[at.first + i] : Word(0);
    }
}

// Whether all rows have the alignment of the first one.
bool whole_bytes(std::int64_t columns) { return columns % gates_of_byte == 0; }

template <class Word>
void mask_words(const GateMatrix& matrix, const void* weight, void* masked, float threshold, Target target) {
    const bool aligned = whole_bytes(matrix.columns) && starts_evenly(matrix.scores) && starts_evenly(weight) && starts_evenly(masked);
    launch(matrix.scores != nullptr ? mask_kernel<Word, true> : mask_kernel<Word, false>,
           divide_up(matrix.bytes(), gate_threads), gate_threads, 0, target, matrix, static_cast<const Word*>(weight),
           static_cast<Word*>(masked), threshold, aligned);
}

}  // namespace

void pack_gates(const PackArguments& first, const PackArguments& second, Dtype dtype, float threshold, Target target) {
    Pair pair;
    const PackArguments* both[] = {&first, &second};
    for (int i = 0; i < 2; ++i) {
        pair.matrices[i] = GateMatrix{both[i]->scores, both[i]->packed, both[i]->rows, both[i]->columns};
    }
    const bool aligned = whole_bytes(first.columns) && whole_bytes(second.columns) && starts_evenly(first.scores) && starts_evenly(second.scores);
    const std::int64_t blocks = divide_up(pair.matrices[0].bytes() + pair.matrices[1].bytes(), gate_threads);
    const auto kernel = dtype == Dtype::float32   ? pack_kernel<float>
                        : dtype == Dtype::float16 ? pack_kernel<float16>
                                                  : pack_kernel<bfloat16>;
    launch(kernel, blocks, gate_threads, 0, target, pair, threshold, aligned);
}

void unpack_gates(const std::uint8_t* packed, bool* gates, std::int64_t rows, std::int64_t columns, Target target) {
    const GateMatrix matrix{nullptr, const_cast<std::uint8_t*>(packed), rows, columns};
    const bool aligned = whole_bytes(columns) && starts_evenly(gates, 8);
    launch(unpack_kernel, divide_up(matrix.bytes(), gate_threads), gate_threads, 0, target, matrix, gates, aligned);
}

void mask_weight(const MaskArguments& arguments, Target target) {
    const GateMatrix matrix{arguments.scores, arguments.packed, arguments.rows, arguments.columns};
    if (arguments.element_bytes == 2) {
        mask_words<std::uint16_t>(matrix, arguments.weight, arguments.masked, arguments.threshold, target);
    } else {
        mask_words<std::uint32_t>(matrix, arguments.weight, arguments.masked, arguments.threshold, target);
    }
}

}  // namespace tss
