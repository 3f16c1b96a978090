// The adapter's kernels for float16 weights.
#include "cuda/gated_adapter_launch.cuh"

namespace tss {

void gated_adapter_float16(const AdapterArguments& arguments, Target target) {
    gated_adapter_of<float16>(arguments, target);
}

}  // namespace tss
