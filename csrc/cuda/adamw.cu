// Launches of soft-masked AdamW: one for all float32 tensors and one for the others, unless there are hundreds.
#include "cuda/adamw.cuh"

#include "cuda/operations.h"

namespace tss {
namespace {

// The numbers of tensors that fit into the usual 4 KB of kernel arguments, and into the 32 KB of CUDA 12.1 and later.
constexpr int few = 60, many = 500;
static_assert(sizeof(AdamwArguments<few>) <= 4000 && sizeof(AdamwArguments<many>) <= 32764, "arguments of a kernel");
constexpr std::int64_t numbers_of_tensor = 7;  // in the table that Python makes

AdamwTensor described(const std::int64_t* numbers) {
    const auto address = [](std::int64_t number) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(number)); };
    AdamwTensor tensor{};
    tensor.param = address(numbers[0]);
    tensor.grad = address(numbers[1]);
    tensor.exp_avg = address(numbers[2]);
    tensor.exp_avg_sq = address(numbers[3]);
    tensor.importance = address(numbers[4]);
    tensor.kinds = static_cast<unsigned>(numbers[5]);
    tensor.size = numbers[6];
    return tensor;
}

template <int capacity>
AdamwArguments<capacity> arguments_of(const AdamwScalars& scalars) {
    AdamwArguments<capacity> arguments{};
    arguments.take1 = scalars.take1;
    arguments.beta2 = scalars.beta2;
    arguments.take2 = scalars.take2;
    arguments.eps = scalars.eps;
    arguments.step = AdamwStep{scalars.decay, scalars.step_size, scalars.root_correction};
    arguments.update_site = scalars.update_site;
    arguments.has_decay = scalars.has_decay;
    arguments.lr_kind = scalars.lr_kind;
    arguments.lr = scalars.lr;
    arguments.log_beta1 = scalars.log_beta1;
    arguments.log_beta2 = scalars.log_beta2;
    arguments.weight_decay = scalars.weight_decay;
    return arguments;
}

// Launch for as many of the tensors from `first` on as fit, and return where the next launch starts. `steps`: the steps
// of all `tensors`, where the device computes them.
template <int capacity, bool kFloat32>
std::size_t launch_some(const std::vector<AdamwTensor>& tensors, std::size_t first, AdamwStep* steps, const AdamwScalars& scalars,
                        Target target) {
    auto arguments = arguments_of<capacity>(scalars);
    std::int64_t blocks = 0;
    for (; first < tensors.size() && arguments.count < capacity; ++first) {
        AdamwTensor& tensor = arguments.tensors[arguments.count++];
        tensor = tensors[first];
        tensor.first_block = static_cast<int>(blocks);
        blocks += divide_up(tensor.size, adamw_block);
    }
    if (steps == nullptr) {
        launch(adamw_kernel<capacity, false, kFloat32>, blocks, adamw_threads, 0, target, arguments);
    } else {
        arguments.steps = steps + (first - static_cast<std::size_t>(arguments.count));
        launch(adamw_steps_kernel<capacity>, divide_up(arguments.count, warp_size), warp_size, 0, target, arguments);
        launch(adamw_kernel<capacity, true, kFloat32>, blocks, adamw_threads, 0, target, arguments);
    }
    return first;
}

template <bool kFloat32>
void launch_all(const std::vector<AdamwTensor>& tensors, AdamwStep* steps, const AdamwScalars& scalars, Target target) {
    for (std::size_t next = 0; next < tensors.size();) {
        next = tensors.size() - next <= few ? launch_some<few, kFloat32>(tensors, next, steps, scalars, target)
                                            : launch_some<many, kFloat32>(tensors, next, steps, scalars, target);
    }
}

}  // namespace

void adamw(const std::vector<std::int64_t>& table, const std::vector<std::uintptr_t>& steps, const AdamwScalars& scalars,
           Target target) {
    std::vector<AdamwTensor> float32, others;
    for (std::size_t i = 0; i < table.size() / numbers_of_tensor; ++i) {
        AdamwTensor tensor = described(&table[i * numbers_of_tensor]);
        if (!steps.empty()) tensor.step = reinterpret_cast<const void*>(steps[i]);
        if (tensor.size > 0) ((tensor.kinds & tensor_kinds) == 0 ? float32 : others).push_back(tensor);
    }
    auto* made = static_cast<AdamwStep*>(scalars.lr == nullptr ? nullptr : scalars.steps);
    launch_all<true>(float32, made, scalars, target);
    launch_all<false>(others, made == nullptr ? nullptr : made + float32.size(), scalars, target);
}

}  // namespace tss
