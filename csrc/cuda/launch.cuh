// Launching a kernel from the host, and querying the runtime about one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef TSS_EMULATED
#include "emulator/language.h"
#else
#include <cuda_runtime.h>
#endif

#include "cuda/target.h"

namespace tss {

#ifndef TSS_EMULATED
// The runtime also keeps an error for the next caller that asks: cleared here, so that it is reported once, by the call
// that it belongs to.
inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes a device current for a launch and restores the previous one afterwards.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "asking for the current device");
        changed_ = before_ != device;
        if (changed_) check(cudaSetDevice(device), "choosing the device");
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};
#endif

constexpr std::size_t usual_shared_bytes = 48 * 1024;  // more must be requested

// Return the registers per thread of the code that the device's driver selects for a kernel: the best match among
// several in the module, or what it compiled from PTX.
template <class... Parameters>
int registers_of([[maybe_unused]] void (*kernel)(Parameters...), [[maybe_unused]] int device) {
#ifdef TSS_EMULATED
    return 255;
#else
    OnDevice current(device);
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel's registers");
    return attributes.numRegs;
#endif
}

// Start a kernel and return at once. Throws std::runtime_error with the runtime's own message, for this launch only:
// earlier errors, of this module or another library, are not reported here.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes, Target target,
            Arguments... arguments) {
    if (blocks <= 0) return;
#ifdef TSS_EMULATED
    (void)target;
    emulator::run(dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), shared_bytes,
                  [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
    OnDevice current(target.device);
    if (shared_bytes > usual_shared_bytes) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
              "asking for shared memory");
    }
    cudaLaunchConfig_t configuration = {};
    configuration.gridDim = dim3(static_cast<unsigned>(blocks));
    configuration.blockDim = dim3(static_cast<unsigned>(threads));
    configuration.dynamicSmemBytes = shared_bytes;
    configuration.stream = reinterpret_cast<cudaStream_t>(target.stream);
    check(cudaLaunchKernelEx(&configuration, kernel, static_cast<Parameters>(arguments)...), "launching a kernel");
#endif
}

}  // namespace tss
