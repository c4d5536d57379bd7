// What the optimizer updates share on the CPU: weights, noise, norms, and the walk over chunks.
#pragma once

#include "../update_list.h"
#include "../updates.h"
#include "scale.h"
#include "spread.h"
#include "squares.h"

namespace modgrad {

// An update reads and writes 28 bytes an element where a streaming pass moves 4 to 8.
constexpr int64_t kUpdateTask = kStreamingTask / 4;

// Elements that are read again, for norms or noise, while they are in the L1 cache: 16 KiB in four tensors.
constexpr int64_t kUpdateBlock = 1024;

// Calls f with T* and S* null pointers of the update's types.
template <typename F>
void with_types(const Update& u, const F& f) {
  MODGRAD_DISPATCH_FLOATS(u.dtype, "update", [&] {
    if (u.state_dtype == u.dtype)
      f(static_cast<scalar_t*>(nullptr), static_cast<scalar_t*>(nullptr));
    else
      f(static_cast<scalar_t*>(nullptr), static_cast<float*>(nullptr));
  });
}

struct UpdateRun {
  const std::vector<Update>& updates;
  const UpdateOptions& options;
  double lr;
  const float* weights;

  float value(const std::optional<Tensor>& tensor, float otherwise) const {
    return tensor.has_value() ? tensor->const_data_ptr<float>()[0] : otherwise;
  }
  double amount(const Update& u) const {
    return options.noise.has_value() && u.group >= 0 ? options.noise->const_data_ptr<float>()[u.group] : 0.0;
  }
  std::vector<double> deviations() const;
  void store_norms(const Plan& plan, const std::vector<double>& partial) const;

  // step(update, weighted, block begin, block size, noise of the block or null) with typed null pointers in front
  template <typename F>
  void operator()(const F& step) const;
};

inline std::vector<double> UpdateRun::deviations() const {
  std::vector<int64_t> sizes(updates.size());
  for (size_t i = 0; i < updates.size(); ++i) sizes[i] = amount(updates[i]) != 0 ? updates[i].size : 0;
  return standard_deviations(make_plan(sizes, kChunkSize, kStreamingTask / 64), sizes, [&](const Chunk& chunk) {
    Spread s;
    const Update& u = updates[chunk.tensor];
    with_types(u, [&](auto* t, auto*) {
      const auto* x = static_cast<const std::remove_pointer_t<decltype(t)>*>(u.grad);
      s = spread(x + chunk.begin, chunk.size, static_cast<double>(x[0]));
    });
    return s;
  });
}

inline void UpdateRun::store_norms(const Plan& plan, const std::vector<double>& partial) const {
  const int64_t num_groups = options.sq_norms->numel() / 2;
  const double scale = value(options.grad_scale, 1.0f);
  double* sums = options.sq_norms->mutable_data_ptr<double>();
  std::fill(sums, sums + 2 * num_groups, 0.0);
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const int64_t g = updates[plan.chunks[c].tensor].group;
    if (g < 0) continue;
    sums[g] += partial[2 * c];
    sums[num_groups + g] += partial[2 * c + 1];
  }
  for (int64_t g = 0; g < num_groups; ++g) sums[g] /= scale * scale;
}

template <typename F>
void UpdateRun::operator()(const F& step) const {
  const double grad_scale = value(options.grad_scale, 1.0f);
  const double rate = options.lr_tensor.has_value() ? value(options.lr_tensor, 0) : lr;
  const uint64_t key = options.seed.has_value() ? static_cast<uint64_t>(options.seed->const_data_ptr<int64_t>()[0]) : 0;
  const bool noisy = options.noise.has_value(), measured = options.sq_norms.has_value();
  std::vector<int64_t> sizes(updates.size());
  for (size_t i = 0; i < updates.size(); ++i) sizes[i] = updates[i].size;
  // as in modulate_: an element with noise costs a hundred times one without
  const Plan plan = make_plan(sizes, kChunkSize, noisy ? kStreamingTask / 64 : kUpdateTask);
  const std::vector<double> std = noisy ? deviations() : std::vector<double>();
  std::vector<double> partial(measured ? 2 * plan.chunks.size() : 0);
  for_each_chunk(plan, [&](int64_t c, const Chunk& chunk) {
    const Update& u = updates[chunk.tensor];
    const double weight = u.group >= 0 ? weights[u.group] : 1.0, a = amount(u);
    const Weighted w =
        weighted(rate, weight, a, a != 0 ? std[chunk.tensor] : 0, grad_scale, options.scale_update, options.maximize);
    const auto stream = static_cast<uint32_t>(options.stream.has_value() ? (*options.stream)[chunk.tensor] : chunk.tensor);
    with_types(u, [&](auto* t, auto* s) {
      using T = std::remove_pointer_t<decltype(t)>;
      const int64_t block = measured || a != 0 ? kUpdateBlock : chunk.size;
      for (int64_t begin = chunk.begin; begin < chunk.begin + chunk.size; begin += block) {
        const int64_t n = std::min(block, chunk.begin + chunk.size - begin);
        if (measured && u.group >= 0) {
          partial[2 * c] += squares(static_cast<const T*>(u.grad) + begin, n);
          partial[2 * c + 1] += squares(static_cast<const T*>(u.param) + begin, n);
        }
        wide_t<T> added[kUpdateBlock];
        if (a != 0)
          for (int64_t i = 0; i < n; i += 4) {
            const Normals4 z = normals(key, stream, static_cast<uint64_t>(begin + i) / 4);
            for (int64_t j = 0; j < 4; ++j) added[i + j] = static_cast<wide_t<T>>(w.noise) * z.z[j];
          }
        step(t, s, u, w, begin, n, a != 0 ? added : nullptr);
      }
    });
  });
  if (measured) store_norms(plan, partial);
}

}  // namespace modgrad
