// The target of a launch.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace tss {

// The device's number and the address of its stream.
struct Target {
    int device = 0;
    std::uintptr_t stream = 0;
};

}  // namespace tss
