// Whether kernels can run on this machine; checked when the backend is first used, never on import.
#pragma once

#include <string>

#ifndef TSS_EMULATED
#include <cuda_runtime.h>
#endif

namespace tss {

#ifdef TSS_EMULATED
constexpr bool emulated = true;
inline std::string obstacle() { return ""; }
#else
constexpr bool emulated = false;
inline std::string obstacle() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    return count > 0 ? "" : "no CUDA device";
}
#endif

}  // namespace tss
