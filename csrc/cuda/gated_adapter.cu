// The adapter's kernels for bfloat16 weights, and the choice between bfloat16 and float16.
#include "cuda/gated_adapter_launch.cuh"

namespace tss {

std::vector<SharedBytes> adapter_shared_bytes() {
    return {{"gated_adapter narrow_128", Narrow128::shared_bytes()},
            {"gated_adapter narrow_64", Narrow64::shared_bytes()},
            {"gated_adapter narrow_32", Narrow32::shared_bytes()},
            {"gated_adapter wide_64", Wide64::shared_bytes()},
            {"gated_adapter wide_32", Wide32::shared_bytes()}};
}

void gated_adapter(const AdapterArguments& arguments, Dtype dtype, Target target) {
    if (dtype == Dtype::float16) return gated_adapter_float16(arguments, target);
    gated_adapter_of<bfloat16>(arguments, target);
}

}  // namespace tss
