// The module tss_kernels._native. Tensors are passed as addresses, sizes and kinds (dtypes), checked by the caller;
// address 0 means no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "task_order.h"
#include "threads.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

tss::Numbers numbers(Address address, int kind) { return {at<void>(address), static_cast<tss::Kind>(kind)}; }

void pack(Address scores, int kind, double threshold, Address packed, int64_t rows, int64_t columns, int threads) {
    tss::kernels().pack(numbers(scores, kind), threshold, at<uint8_t>(packed), rows, columns, threads);
}

void unpack(Address packed, Address gate, int64_t rows, int64_t columns, int threads) {
    tss::kernels().unpack(at<uint8_t>(packed), at<uint8_t>(gate), rows, columns, threads);
}

void mask_by_scores(Address weight, Address masked, int width, Address scores, int kind, double threshold,
                    Address packed, int64_t rows, int64_t columns, int threads) {
    tss::kernels().mask_by_scores(at<void>(weight), at<void>(masked), width, numbers(scores, kind), threshold,
                                  at<uint8_t>(packed), rows, columns, threads);
}

void mask_by_bits(Address weight, Address masked, int width, Address packed, int64_t rows, int64_t columns,
                  int threads) {
    tss::kernels().mask_by_bits(at<void>(weight), at<void>(masked), width, at<uint8_t>(packed), rows, columns, threads);
}

void scores_grad(Address product, int product_kind, Address weight, int weight_kind, Address importance,
                 int importance_kind, Address grad, int64_t count, int threads) {
    tss::kernels().scores_grad(numbers(product, product_kind), numbers(weight, weight_kind),
                               numbers(importance, importance_kind), at<float>(grad), count, threads);
}

// `table` has this many integers for each parameter: the addresses of param, grad, exp_avg, exp_avg_sq, importance, then
// their kinds (four bits each, param lowest) and the number of elements.
constexpr int64_t columns_of_table = 7;

void adamw(Address table, int64_t count, double decay, double one_minus_beta1, double beta2, double one_minus_beta2,
           double step_size, double root_correction, double eps, bool update_site, bool decays, int threads) {
    std::vector<tss::AdamWEntry> entries;
    entries.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
        const int64_t* row = at<const int64_t>(table) + columns_of_table * i;
        const auto tensor = [row](int index) {
            return numbers(static_cast<Address>(row[index]), static_cast<int>(row[5] >> (4 * index) & 15));
        };
        entries.push_back({tensor(0), tensor(1), tensor(2), tensor(3), tensor(4), row[6]});
    }
    const tss::AdamWStep step{decay,          one_minus_beta1, beta2,       one_minus_beta2, step_size,
                              root_correction, eps,             update_site, decays};
    tss::kernels().adamw(entries.data(), static_cast<int64_t>(entries.size()), step, threads);
}

void importance(Address raw, int raw_kind, Address target, int target_kind, bool update, int64_t groups, int64_t size,
                int threads) {
    tss::kernels().importance(numbers(raw, raw_kind), numbers(target, target_kind), update, groups, size, threads);
}

void accumulate(Address total, Address other, int kind, int64_t count, int threads) {
    tss::kernels().accumulate(at<void>(total), at<void>(other), static_cast<tss::Kind>(kind), count, threads);
}

// Return -1, or the first entry whose task is not among the `tasks` tasks of the bank; then nothing is computed.
int64_t multi_task_product(Address x, int64_t x_stride, Address weight, int kind, Address bank, int64_t task_stride,
                           int64_t tasks, Address task_ids, int64_t entries, int64_t length, Address bias, Address y,
                           int64_t out_features, int64_t in_features, bool backward, int threads) {
    const tss::MultiTaskProduct product{numbers(x, kind),    numbers(weight, kind),       numbers(bias, kind),
                                        numbers(y, kind),    at<const uint8_t>(bank),     at<const int64_t>(task_ids),
                                        x_stride,            task_stride,                 entries,
                                        length,              out_features,                in_features,
                                        backward};
    int64_t outside = -1;
    const std::vector<int64_t> order = tss::order_by_task(product.task_ids, entries, tasks, &outside);
    if (outside < 0) tss::kernels().multi_task_product(product, order.data(), threads);
    return outside;
}

void activate(Address from, Address to, int kind, int activation, int64_t count, int threads) {
    tss::kernels().activate(numbers(from, kind), numbers(to, kind), static_cast<tss::Activation>(activation), count,
                            threads);
}

std::vector<std::string> instruction_sets() {
    int count = 0;
    const tss::Kernels* const* tables = tss::available_kernels(&count);
    std::vector<std::string> names;
    for (int i = 0; i < count; ++i) names.emplace_back(tables[i]->name);
    return names;
}

void use_instruction_set(const std::string& name) {
    if (tss::use_kernels(name.c_str())) return;
    std::string known;
    for (const std::string& one : instruction_sets()) known += (known.empty() ? "" : ", ") + one;
    throw std::invalid_argument("no instruction set '" + name + "' here: this processor runs " + known);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("pack", pack, NoGil());
    module.def("unpack", unpack, NoGil());
    module.def("mask_by_scores", mask_by_scores, NoGil());
    module.def("mask_by_bits", mask_by_bits, NoGil());
    module.def("scores_grad", scores_grad, NoGil());
    module.def("adamw", adamw, NoGil());
    module.def("importance", importance, NoGil());
    module.def("accumulate", accumulate, NoGil());
    module.def("multi_task_product", multi_task_product, NoGil());
    module.def("activate", activate, NoGil());
    module.def("use_team", [](Address team) { tss::use_team(reinterpret_cast<tss::Team>(team)); });
    module.def("instruction_set", [] { return std::string(tss::kernels().name); });
    module.def("instruction_sets", instruction_sets);
    module.def("use_instruction_set", use_instruction_set);
}
