// The Python module: addresses as integers, sizes and strides in elements; Python has made every check before.
#include <cmath>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/device_count.h"
#include "cuda/operations.h"
#include "cuda/target.h"
#ifdef TSS_EMULATED
#include "emulator/counts.h"
#endif

namespace py = pybind11;

namespace tss {
namespace {

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

using Address = std::uintptr_t;
using Size = std::int64_t;

// A launch may wait for room in the device's queue, or for the driver to load code: other Python threads run meanwhile.
// They may launch the same kernel, which asks for the same shared memory in every launch.
// The emulator counts in variables that its threads share, so emulated launches run one at a time.
#ifdef TSS_EMULATED
using Launching = py::call_guard<>;
#else
using Launching = py::call_guard<py::gil_scoped_release>;
#endif

void bind_gates(py::module_& module) {
    module.def("pack_gates", [](Address scores, Address packed, Size rows, Size columns, Address other_scores,
                                Address other_packed, Size other_rows, Size other_columns, int dtype, float threshold,
                                int device, Address stream) {
        pack_gates({at<void>(scores), at<std::uint8_t>(packed), rows, columns},
                   {at<void>(other_scores), at<std::uint8_t>(other_packed), other_rows, other_columns}, Dtype(dtype), threshold,
                   {device, stream});
    }, Launching());
    module.def("unpack_gates", [](Address packed, Address gates, Size rows, Size columns, int device, Address stream) {
        unpack_gates(at<std::uint8_t>(packed), at<bool>(gates), rows, columns, {device, stream});
    }, Launching());
    module.def("mask_weight", [](Address scores, Address packed, Address weight, Address masked, Size rows, Size columns,
                                 int element_bytes, float threshold, int device, Address stream) {
        mask_weight({at<float>(scores), at<std::uint8_t>(packed), at<void>(weight), at<void>(masked), rows, columns,
                     element_bytes, threshold},
                    {device, stream});
    }, Launching());
}

void bind_gated_linear(py::module_& module) {
    module.def("gated_product", [](Address activations, Size rows, Size row_stride, Size column_stride, Address weight,
                                   Size out_features, Size in_features, Address packed, Address scores, float threshold,
                                   Address bias, Address result, bool transposed, int tiling, Address partial,
                                   Size range_tiles, int dtype, int device, Address stream) {
        gated_product({at<void>(activations), rows, row_stride, column_stride, at<void>(weight), out_features, in_features,
                       at<std::uint8_t>(packed), at<float>(scores), threshold, at<void>(bias), at<void>(result), transposed,
                       Tiling(tiling), at<float>(partial), range_tiles},
                      Dtype(dtype), {device, stream});
    }, Launching());
    module.def("has_warpgroups", &has_warpgroups, "Whether the tilings with groups run on the device of this number.");
    module.def("scores_grad_range_rows", &scores_grad_range_rows);
    module.def("scores_grad", [](Address dy, Size dy_row_stride, Size dy_column_stride, Address x, Size x_row_stride,
                                 Size x_column_stride, Size rows, Size out_features, Size in_features, Address weight,
                                 Address importance, Address grad, Address partial, Size range_rows, int dtype, int device,
                                 Address stream) {
        scores_grad({at<void>(dy), dy_row_stride, dy_column_stride, at<void>(x), x_row_stride, x_column_stride, rows,
                     out_features, in_features, at<void>(weight), at<float>(importance), at<float>(grad), at<float>(partial),
                     range_rows},
                    Dtype(dtype), {device, stream});
    }, Launching());
}

void bind_adamw(py::module_& module) {
    using Table = std::vector<std::int64_t>;
    static const auto single = [](double value) { return static_cast<float>(value); };
    module.def("adamw", [](const Table& table, double decay, double take1, double beta2, double take2,
                           double step_size, double root_correction, double eps, bool update_site, bool has_decay, int device,
                           Address stream) {
        adamw(table, {},
              {single(decay), single(take1), single(beta2), single(take2), single(step_size), single(root_correction), single(eps),
               update_site, has_decay, nullptr, 0, 0.0, 0.0, 0.0, nullptr},
              {device, stream});
    }, Launching());
    module.def("adamw_on_device", [](const Table& table, const std::vector<Address>& steps, Address made, Address lr,
                                     unsigned lr_kind, double beta1, double beta2, double weight_decay, double eps,
                                     bool update_site, int device, Address stream) {
        adamw(table, steps,
              {0.0f, single(1.0 - beta1), single(beta2), single(1.0 - beta2), 0.0f, 1.0f, single(eps), update_site,
               weight_decay != 0.0, at<void>(lr), lr_kind, std::log2(beta1), std::log2(beta2), weight_decay,
               at<void>(made)},
              {device, stream});
    }, Launching());
}

void bind_importance(py::module_& module) {
    module.def("importance", [](Address raw, int raw_dtype, Address result, int result_dtype, Address partial, Size groups,
                                Size size, Size chunk, bool update, int device, Address stream) {
        importance({at<void>(raw), Dtype(raw_dtype), at<void>(result), Dtype(result_dtype), at<double>(partial), groups, size,
                    chunk, update},
                   {device, stream});
    }, Launching());
    module.def("accumulate_importance", [](Address total, int total_dtype, Address added, int added_dtype, Size size, int device,
                                           Address stream) {
        accumulate_importance(at<void>(total), Dtype(total_dtype), at<void>(added), Dtype(added_dtype), size, {device, stream});
    }, Launching());
}

std::vector<SharedBytes> shared_bytes() {
    std::vector<SharedBytes> all;
    for (const auto& some : {product_shared_bytes(), scores_grad_shared_bytes(), adapter_shared_bytes(), multi_task_shared_bytes()}) {
        all.insert(all.end(), some.begin(), some.end());
    }
    return all;
}

void bind_gated_adapter(py::module_& module) {
    module.def("gated_adapter", [](Address x, Size rows, Size row_stride, Size column_stride, bool wider, Address down_weight,
                                   Address down_packed, Address down_bias, Address up_weight, Address up_packed, Address up_bias,
                                   Size features, Size bottleneck, Address result, Address hidden, Address d_hidden, int activation,
                                   int tile, int dtype, int device, Address stream) {
        gated_adapter({at<void>(x), rows, row_stride, column_stride, wider, at<void>(down_weight), at<std::uint8_t>(down_packed),
                       at<void>(down_bias), at<void>(up_weight), at<std::uint8_t>(up_packed), at<void>(up_bias), features, bottleneck,
                       at<void>(result), at<void>(hidden), at<void>(d_hidden), Activation(activation), AdapterTiling(tile)},
                      Dtype(dtype), {device, stream});
    }, Launching());
}

void bind_multi_task(py::module_& module) {
    module.def("group_tile_rows", [](int dtype) { return group_tile_rows(Dtype(dtype)); });
    module.def("group_by_task", [](Address task_ids, Size entries, Size length, Size tasks, Address order, Address tiles, int dtype,
                                   int device, Address stream) {
        group_by_task({at<std::int64_t>(task_ids), entries, length, tasks, at<std::int64_t>(order), at<std::int64_t>(tiles)},
                      Dtype(dtype), {device, stream});
    }, Launching());
    module.def("multi_task_product", [](Address activations, Size row_stride, Size column_stride, Address weight, Size out_features,
                                        Size in_features, Address bank, Size task_bytes, Address bias, Address result,
                                        bool transposed, bool aligned, int activation, Address hidden, Address residual,
                                        Size residual_row_stride, Size residual_column_stride, bool wider, Address order,
                                        Address tiles, Size tile_count, Size length, int dtype, int device, Address stream) {
        multi_task_product({at<void>(activations), row_stride, column_stride, at<void>(weight), out_features, in_features,
                            at<std::uint8_t>(bank), task_bytes, at<void>(bias), at<void>(result), transposed, aligned, activation,
                            at<void>(hidden), at<void>(residual), residual_row_stride, residual_column_stride, wider,
                            at<std::int64_t>(order), at<std::int64_t>(tiles), tile_count, length},
                           Dtype(dtype), {device, stream});
    }, Launching());
}

}  // namespace
}  // namespace tss

#ifdef TSS_EMULATED
PYBIND11_MODULE(_cuda_emulated, module) {
#else
PYBIND11_MODULE(_cuda, module) {
#endif
    module.attr("emulated") = tss::emulated;
    module.def("obstacle", &tss::obstacle, "Why no kernel can run on this machine, or an empty string.");
    module.def("shared_bytes", &tss::shared_bytes, "Bytes of shared memory of every kind of launch that asks for some.");
#ifdef TSS_EMULATED
    module.attr("traced") = tss::emulator::traced;
    module.def("take_counts", &tss::emulator::take_counts, "What kernels executed since the last call, by name.");
#endif
    tss::bind_gates(module);
    tss::bind_adamw(module);
    tss::bind_importance(module);
    tss::bind_gated_linear(module);
    tss::bind_gated_adapter(module);
    tss::bind_multi_task(module);
}
