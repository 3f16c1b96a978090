// Element types, with the numbers that Python passes for them.
#pragma once

namespace tss {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

}  // namespace tss
