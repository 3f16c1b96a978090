// Launches of soft-masked AdamW: one for all tensors of float32 and one for the others, unless there are hundreds.
#include "cuda/adamw.cuh"

#include "cuda/operations.h"

namespace tss {
namespace {

// What fits into the 4 KB of arguments that always were, and into the 32 KB of CUDA 12.1 and later.
constexpr int few = 48, many = 400;
static_assert(sizeof(AdamwArguments<few>) <= 4000 && sizeof(AdamwArguments<many>) <= 32764, "arguments of a kernel");
constexpr std::int64_t numbers_of_tensor = 10;  // in the table that Python makes

AdamwTensor described(const std::int64_t* numbers, double threshold) {
    const auto address = [](std::int64_t number) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(number)); };
    const std::int64_t rows = numbers[6], columns = numbers[7];
    AdamwTensor tensor{};
    tensor.param = address(numbers[0]);
    tensor.grad = address(numbers[1]);
    tensor.exp_avg = address(numbers[2]);
    tensor.exp_avg_sq = address(numbers[3]);
    tensor.importance = address(numbers[4]);
    tensor.kinds = static_cast<unsigned>(numbers[5]) & 0xFFFFFu;
    tensor.packed = static_cast<std::uint8_t*>(address(numbers[8]));
    tensor.flips = static_cast<unsigned long long*>(address(numbers[9]));
    const bool ragged = tensor.packed != nullptr && columns % gates_in_byte != 0;
    tensor.columns = ragged ? static_cast<int>(columns) : 0;
    tensor.size = ragged ? rows * divide_up(columns, gates_in_byte) * gates_in_byte : rows * columns;
    tensor.threshold = static_cast<float>(threshold);
    return tensor;
}

// A tensor and its number in the list of all.
using Numbered = std::pair<AdamwTensor, std::size_t>;

// Launches the first of them from `first` on, as many as fit, and returns where the next launch starts.
template <int capacity, bool kFloat32>
std::size_t launch_some(const std::vector<Numbered>& tensors, std::size_t first, const AdamwScalars& scalars,
                        const AdamwStep* steps, Target target) {
    AdamwArguments<capacity> arguments{};
    arguments.take1 = scalars.take1;
    arguments.beta2 = scalars.beta2;
    arguments.take2 = scalars.take2;
    arguments.eps = scalars.eps;
    arguments.step = AdamwStep{scalars.decay, scalars.step_size, scalars.root_correction};
    arguments.update_site = scalars.update_site;
    arguments.has_decay = scalars.has_decay;
    const std::size_t first_number = tensors[first].second;
    arguments.steps = steps == nullptr ? nullptr : steps + first_number;
    std::int64_t blocks = 0;
    std::size_t i = first;
    for (; i < tensors.size() && arguments.count < capacity && tensors[i].second - first_number < 4096; ++i) {
        AdamwTensor tensor = tensors[i].first;
        tensor.number = static_cast<unsigned>(tensors[i].second - first_number) & 4095u;
        tensor.first_block = static_cast<int>(blocks);
        blocks += divide_up(tensor.size, adamw_block);
        arguments.tensors[arguments.count++] = tensor;
    }
    launch(adamw_kernel<capacity, kFloat32>, blocks, adamw_threads, 0, target, arguments);
    return i;
}

template <bool kFloat32>
void launch_all(const std::vector<Numbered>& tensors, const AdamwScalars& scalars, const AdamwStep* steps, Target target) {
    for (std::size_t next = 0; next < tensors.size();) {
        next = tensors.size() - next <= few ? launch_some<few, kFloat32>(tensors, next, scalars, steps, target)
                                            : launch_some<many, kFloat32>(tensors, next, scalars, steps, target);
    }
}

// Where each tensor's step number (float32) is.
struct StepNumbers {
    const float* numbers[many];
    int count;
};

// One thread for each tensor: what PyTorch computes on the host from the step's number and the learning rate, in float64.
__global__ void __launch_bounds__(adamw_threads)
    adamw_steps_kernel(const __grid_constant__ StepNumbers numbers, const float* lr, double beta1, double beta2, double weight_decay, AdamwStep* steps) {
    for (int index = threadIdx.x; index < numbers.count; index += adamw_threads) {
        const double number = *numbers.numbers[index], rate = *lr;
        steps[index].decay = static_cast<float>(rate * weight_decay);
        steps[index].step_size = static_cast<float>(rate / (1.0 - pow(beta1, number)));
        steps[index].root_correction = static_cast<float>(sqrt(1.0 - pow(beta2, number)));
    }
}

}  // namespace

void adamw_steps(const std::vector<std::int64_t>& addresses, const float* lr, double beta1, double beta2, double weight_decay,
                 void* steps, Target target) {
    for (std::size_t first = 0; first < addresses.size(); first += many) {
        StepNumbers numbers{};
        while (numbers.count < many && first + numbers.count < addresses.size()) {
            numbers.numbers[numbers.count] = reinterpret_cast<const float*>(addresses[first + numbers.count]);
            ++numbers.count;
        }
        launch(adamw_steps_kernel, 1, adamw_threads, 0, target, numbers, lr, beta1, beta2, weight_decay,
               static_cast<AdamwStep*>(steps) + first);
    }
}

void adamw(const std::vector<std::int64_t>& table, const std::vector<double>& thresholds, const AdamwScalars& scalars,
           const void* steps, Target target) {
    std::vector<Numbered> float32, others;
    for (std::size_t i = 0; i < thresholds.size(); ++i) {
        const AdamwTensor tensor = described(&table[i * numbers_of_tensor], thresholds[i]);
        if (tensor.size > 0) (tensor.kinds == 0 ? float32 : others).emplace_back(tensor, i);
    }
    launch_all<true>(float32, scalars, static_cast<const AdamwStep*>(steps), target);
    launch_all<false>(others, scalars, static_cast<const AdamwStep*>(steps), target);
}

}  // namespace tss
