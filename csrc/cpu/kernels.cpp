// All kernels for one instruction set: compiled once for each, with TSS_ISA naming it. Nothing but the table has external
// linkage: the linker keeps one copy of a shared inline function, and it could be one that this processor cannot run.
#include "kernels.h"

#include "activations.h"
#include "adamw.h"
#include "gated_linear.h"
#include "gates.h"
#include "importance.h"
#include "multi_task.h"

#define TSS_NAME_OF(isa) #isa
#define TSS_NAME(isa) TSS_NAME_OF(isa)

namespace tss::TSS_ISA {

extern const Kernels table;
const Kernels table = {
    TSS_NAME(TSS_ISA), pack, unpack, mask_by_scores, mask_by_bits, scores_grad, adamw, importance, accumulate,
    multi_task_product, activate,
};

}  // namespace tss::TSS_ISA
