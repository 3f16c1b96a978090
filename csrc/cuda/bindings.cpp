// The Python module: addresses as integers, sizes and strides in elements; every check was made before, in Python.
#include <pybind11/pybind11.h>

#include "cuda/device_count.h"
#include "cuda/operations.h"
#include "cuda/target.h"

namespace py = pybind11;

namespace tss {
namespace {

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

using Address = std::uintptr_t;
using Size = std::int64_t;

void bind_gates(py::module_& module) {
    module.def("pack_gates", [](Address scores, Address packed, Size rows, Size columns, Address other_scores,
                                Address other_packed, Size other_rows, Size other_columns, int dtype, float threshold,
                                int device, Address stream) {
        pack_gates({at<void>(scores), at<std::uint8_t>(packed), rows, columns},
                   {at<void>(other_scores), at<std::uint8_t>(other_packed), other_rows, other_columns}, Dtype(dtype), threshold,
                   {device, stream});
    });
    module.def("unpack_gates", [](Address packed, Address gates, Size rows, Size columns, int device, Address stream) {
        unpack_gates(at<std::uint8_t>(packed), at<bool>(gates), rows, columns, {device, stream});
    });
    module.def("mask_weight", [](Address scores, Address packed, Address weight, Address masked, Size rows, Size columns,
                                 int element_bytes, float threshold, int device, Address stream) {
        mask_weight({at<float>(scores), at<std::uint8_t>(packed), at<void>(weight), at<void>(masked), rows, columns,
                     element_bytes, threshold},
                    {device, stream});
    });
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
    tss::bind_gates(module);
}
