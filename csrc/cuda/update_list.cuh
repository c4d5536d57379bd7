// The parameters of an optimizer update, as its kernels take them.
#pragma once

#include <optional>

#include "../rules.h"
#include "tensor_list.cuh"

namespace modgrad {

constexpr int kStates = 3;  // an optimizer keeps as many tensors a parameter, or fewer

template <int kCapacity>
struct UpdateList;

// A parameter with its gradient and state, all dense and in one memory order.
struct UpdateRef {
  template <int kCapacity>
  using List = UpdateList<kCapacity>;

  void* param;
  const void* grad;
  void* state[kStates];
  float* step;  // [1], null where the optimizer counts none
  int64_t numel;
  int32_t group;    // row of the weights, -1 for none
  uint32_t stream;  // of normals
  Dtype dtype, state_dtype;
  static constexpr int kMost = 430;  // in the arguments of one launch
};

template <int kCapacity>
struct UpdateList : ChunkList<kCapacity> {
  static constexpr int kMost = kCapacity;
  void* param[kCapacity];
  const void* grad[kCapacity];
  void* state[kStates][kCapacity];
  float* step[kCapacity];
  uint32_t stream[kCapacity];
  Dtype state_dtype[kCapacity];

  void set(int i, const UpdateRef& update) {
    param[i] = update.param;
    grad[i] = update.grad;
    for (int k = 0; k < kStates; ++k) state[k][i] = update.state[k];
    step[i] = update.step;
    stream[i] = update.stream;
    state_dtype[i] = update.state_dtype;
  }
};
static_assert(sizeof(UpdateList<UpdateRef::kMost>) + 256 <= 32764, "list and further arguments pass the limit");

// Sums of squares of a chunk of the gradients and of the parameters before the update.
struct Squares {
  double grad = 0, param = 0;
};

// What all updates take besides the parameters. Null pointers: without it.
struct DeviceOptions {
  const float* weights;  // [M]
  double lr;
  bool maximize, scale_update;
  const float* lr_tensor;   // [1], instead of lr
  const float* grad_scale;  // [1]
  const float* found_inf;   // [1], not 0: nothing changes
  const float* noise;       // [M]
  const int64_t* seed;      // [1]
  double* sq_norms;         // [2, M]
  int64_t num_groups;       // M
  // scratch, where there is noise
  Spread* spread;     // [count_chunks]
  double* deviation;  // [P]
  // scratch, where there are sq_norms
  Squares* squares;  // [count_chunks]
};

// A rule that finds the weights from the squared norms of the gradients, before the update.
struct WeightsRule {
  Rule rule;
  double* partial;  // [count_chunks], scratch
  double* sums;     // [M], scratch
  RuleOut out;
};

// By group where norms are wanted or measured, so that the sums of one group stand side by side. Called before
// anything is launched: chunks and scratch are counted in the order of the list.
void sort_for_norms(std::vector<UpdateRef>& updates, const DeviceOptions& options,
                    const std::optional<WeightsRule>& rule);

// Writes the weights where there is a rule, for updates that are sorted then.
cudaError_t launch_weights(const std::vector<UpdateRef>& updates, const DeviceOptions& options,
                           const std::optional<WeightsRule>& rule, cudaStream_t stream);

// The spread of the gradients that get noise, before the update.
cudaError_t launch_spread(const std::vector<UpdateRef>& updates, const DeviceOptions& options, cudaStream_t stream);

// The norms from the squares that the update left.
cudaError_t launch_norms(const std::vector<UpdateRef>& updates, const DeviceOptions& options, cudaStream_t stream);

}  // namespace modgrad
