// A program that runs the kernels for the CPU, except multi_task_product and activate, at fixed shapes, on one thread,
// for callgrind to count what `counted` executes: without Python, PyTorch or start-up. It links the same objects that
// the extension module is made of.
//
// Prints the compiler, then for each call of `counted` in order: instruction set, kernel, launch, rows, elements.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/half.h"
#include "cpu/kernels.h"

#if defined(__clang__)
#define TSS_COMPILER "clang-" TSS_TEXT(__clang_major__)
#else
#define TSS_COMPILER "gcc-" TSS_TEXT(__GNUC__)
#endif
#define TSS_TEXT(number) TSS_TEXT_OF(number)
#define TSS_TEXT_OF(number) #number

namespace tss {

namespace portable {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
#endif

namespace {

constexpr int64_t columns = 1024, ragged = 1001;  // the second ends within a byte of gates
constexpr int64_t short_rows = 8, long_rows = 32;
constexpr int threads = 1;

int width_of(Kind kind) { return kind == Kind::float64 ? 8 : kind == Kind::float32 ? 4 : 2; }

// Memory for `count` numbers, aligned to 64 bytes and filled with the same values in every run; none is negative, so
// that they can serve as importance and second moments too.
class Filled {
public:
    Filled(Kind kind, int64_t count) : kind_(kind) {
        const auto lines = static_cast<uint32_t>(count * width_of(kind) / 64 + 1);
        data_.reset(std::aligned_alloc(64, std::size_t(64) * lines));
        uint32_t state = 1;
        for (int64_t i = 0; i < count; ++i) put(i, static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f);
    }

    operator Numbers() const { return {data_.get(), kind_}; }
    template <class T>
    T* as() const { return static_cast<T*>(data_.get()); }

private:
    void put(int64_t at, float value) {
        if (kind_ == Kind::float64) as<double>()[at] = value;
        else if (kind_ == Kind::float32) as<float>()[at] = value;
        else as<uint16_t>()[at] = kind_ == Kind::float16 ? to_half(value) : to_bfloat(value);
    }

    struct Freed {
        void operator()(void* data) const { std::free(data); }
    };
    std::unique_ptr<void, Freed> data_;
    Kind kind_;
};

using Call = std::function<void()>;

// The function that callgrind counts: optimization must not change its symbol.
extern "C" __attribute__((noinline, noclone)) void counted(const Call& call) {
    call();
    asm volatile("" ::: "memory");
}

const Numbers none{nullptr, Kind::float32};

// All kernels of one instruction set for matrices of `rows` rows.
class Calls {
public:
    Calls(const Kernels& kernels, int64_t rows) : kernels_(kernels), rows_(rows), count_(rows * columns) {}

    void run() const {
        gates();
        masks();
        gradients();
        for (const bool update : {false, true}) adamw(update);
        importances();
    }

private:
    // Call once to warm up, and once to be counted.
    void count(const char* kernel, const std::string& launch, const Call& call, int64_t elements) const {
        call();
        counted(call);
        std::printf("%s\t%s\t%s\t%d\t%lld\n", kernels_.name, kernel, launch.c_str(), static_cast<int>(rows_),
                    static_cast<long long>(elements));
    }

    void gates() const {
        const Filled single(Kind::float32, count_), half(Kind::float16, count_), brain(Kind::bfloat16, count_);
        const Filled packed(Kind::float32, count_), gate(Kind::float32, count_);
        const auto pack = [&](const char* launch, Numbers scores, int64_t in) {
            count("pack", launch, [&] { kernels_.pack(scores, 0.5, packed.as<uint8_t>(), rows_, in, threads); }, rows_ * in);
        };
        pack("float32", single, columns);
        pack("float32, rows end within a byte", single, ragged);
        pack("float16", half, columns);
        pack("bfloat16", brain, columns);
        for (const int64_t in : {columns, ragged})
            count("unpack", in == columns ? "rows of whole bytes" : "rows end within a byte",
                  [&] { kernels_.unpack(packed.as<uint8_t>(), gate.as<uint8_t>(), rows_, in, threads); }, rows_ * in);
    }

    void masks() const {
        const Filled scores(Kind::float32, count_), packed(Kind::float32, count_), masked(Kind::float32, count_);
        for (const Kind kind : {Kind::float32, Kind::bfloat16}) {
            const Filled weight(kind, count_);
            const char* launch = kind == Kind::float32 ? "float32" : "bfloat16";
            count("mask_by_scores", launch,
                  [&] {
                      kernels_.mask_by_scores(weight.as<void>(), masked.as<void>(), width_of(kind), scores, 0.5,
                                              packed.as<uint8_t>(), rows_, columns, threads);
                  },
                  count_);
            count("mask_by_bits", launch,
                  [&] {
                      kernels_.mask_by_bits(weight.as<void>(), masked.as<void>(), width_of(kind), packed.as<uint8_t>(), rows_,
                                            columns, threads);
                  },
                  count_);
        }
    }

    void gradients() const {
        const Filled product(Kind::float32, count_), importance(Kind::float32, count_), grad(Kind::float32, count_);
        for (const Kind kind : {Kind::float32, Kind::bfloat16}) {
            const Filled weight(kind, count_);
            const std::string launch = kind == Kind::float32 ? "weight float32" : "weight bfloat16";
            for (const bool softly : {false, true})
                count("scores_grad", launch + (softly ? ", soft mask" : ""),
                      [&] {
                          kernels_.scores_grad(product, weight, softly ? Numbers(importance) : none, grad.as<float>(), count_,
                                               threads);
                      },
                      count_);
        }
    }

    void adamw(bool update_site) const {
        const Filled param(Kind::float32, count_), m(Kind::float32, count_), v(Kind::float32, count_);
        const Filled grad(Kind::float32, count_), narrow(Kind::bfloat16, count_), importance(Kind::float32, count_);
        const AdamWStep step{1e-4, 0.1, 0.999, 1e-3, 1e-3, 0.5, 1e-8, update_site, true};
        const auto one = [&](const std::string& launch, Numbers g, Numbers soft) {
            const AdamWEntry entry{param, g, m, v, soft, count_};
            count("adamw", launch, [&] { kernels_.adamw(&entry, 1, step, threads); }, count_);
        };
        const std::string site = update_site ? "update site" : "gradient site";
        one(site, grad, importance);
        if (update_site) return;
        one("no soft mask", grad, none);
        one(site + ", gradient bfloat16", narrow, importance);
    }

    void importances() const {
        const Filled raw(Kind::float32, count_), total(Kind::float32, count_), narrow(Kind::bfloat16, count_);
        for (const bool by_row : {false, true})
            for (const bool update : {false, true})
                count(update ? "update" : "normalize", by_row ? "by row" : "by tensor",
                      [&] {
                          kernels_.importance(raw, total, update, by_row ? rows_ : 1, by_row ? columns : count_, threads);
                      },
                      count_);
        count("accumulate", "float32",
              [&] { kernels_.accumulate(total.as<void>(), raw.as<void>(), Kind::float32, count_, threads); }, count_);
        count("accumulate", "bfloat16",
              [&] { kernels_.accumulate(narrow.as<void>(), raw.as<void>(), Kind::bfloat16, count_, threads); }, count_);
    }

    const Kernels& kernels_;
    const int64_t rows_, count_;
};

}  // namespace
}  // namespace tss

int main() {
    std::printf("%s\n", TSS_COMPILER);
    for (const int64_t rows : {tss::short_rows, tss::long_rows}) {
        tss::Calls(tss::portable::table, rows).run();
#if defined(__x86_64__)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
            tss::Calls(tss::avx2::table, rows).run();
#endif
    }
    return 0;
}
