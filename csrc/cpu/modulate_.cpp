// g <- w g, or w g + a std(g) z: two passes with noise (the spread, then the update), one without.
#include "ops.h"
#include "scale.h"
#include "spread.h"

namespace modgrad {
namespace {

// Chunks begin at multiples of 4, so a quad of normals never straddles two of them.
template <typename T>
void scale_and_add_noise(T* x, const Chunk& chunk, float weight, double deviation, uint64_t seed) {
  using Wide = wide_t<T>;
  for (int64_t i = 0; i < chunk.size; i += 4) {
    const Normals4 n = normals(seed, static_cast<uint32_t>(chunk.tensor), static_cast<uint64_t>(chunk.begin + i) / 4);
    for (int64_t j = 0; j < std::min<int64_t>(4, chunk.size - i); ++j) {
      T& g = x[chunk.begin + i + j];
      g = static_cast<T>(static_cast<Wide>(g) * Wide(weight) + Wide(deviation) * Wide(n.z[j]));
    }
  }
}

}  // namespace

void modulate_(const std::vector<Array>& grads, const std::vector<int64_t>& group, const Tensor& weights,
               const std::optional<Tensor>& noise, const std::optional<Tensor>& seed) {
  std::vector<int64_t> sizes = sizes_of(grads);
  const int64_t num_groups = weights.numel();
  check_group(group, grads.size(), num_groups);
  check_vector("weights", weights, ScalarType::Float, num_groups);
  STD_TORCH_CHECK(noise.has_value() == seed.has_value(), "`noise` and `seed` are given together or not at all");
  if (noise.has_value()) {
    check_vector("noise", *noise, ScalarType::Float, num_groups);
    check_vector("seed", *seed, ScalarType::Long, 1);
  }
  const float* w = weights.const_data_ptr<float>();
  const float* a = noise.has_value() ? noise->const_data_ptr<float>() : nullptr;
  const uint64_t key = seed.has_value() ? static_cast<uint64_t>(seed->const_data_ptr<int64_t>()[0]) : 0;

  // What stays as it is gets no chunks: tasks are shared out by number, and one thread's share could
  // otherwise be all of the modality that is left alone.
  for (size_t t = 0; t < grads.size(); ++t)
    if ((a == nullptr || a[group[t]] == 0.0f) && w[group[t]] == 1.0f) sizes[t] = 0;

  // An element with noise costs some 12 ns, a hundred times one without.
  const Plan plan = make_plan(sizes, kChunkSize, a != nullptr ? kStreamingTask / 64 : kStreamingTask);
  std::vector<double> std;
  if (a != nullptr)
    std = standard_deviations(plan, sizes, [&](const Chunk& chunk) {
      Spread s;
      MODGRAD_DISPATCH_FLOATS(grads[chunk.tensor].dtype, "modulate_", [&] {
        const auto* x = static_cast<const scalar_t*>(grads[chunk.tensor].data);
        s = spread(x + chunk.begin, chunk.size, static_cast<double>(x[0]));
      });
      return s;
    });
  for_each_chunk(plan, [&](int64_t, const Chunk& chunk) {
    const Array& grad = grads[chunk.tensor];
    const int64_t g = group[chunk.tensor];
    const float amount = a != nullptr ? a[g] : 0.0f;
    MODGRAD_DISPATCH_FLOATS(grad.dtype, "modulate_", [&] {
      auto* x = static_cast<scalar_t*>(grad.data);
      if (amount == 0.0f)
        scale(x + chunk.begin, x + chunk.begin, chunk.size, w[g]);
      else
        scale_and_add_noise(x, chunk, w[g], amount * std[chunk.tensor], key);
    });
  });
}

namespace {

void of_tensors(const HandleList& handles, const std::vector<int64_t>& group, const Tensor& weights,
                const std::optional<Tensor>& noise, const std::optional<Tensor>& seed) {
  const Handles grads("grads", handles);
  STD_TORCH_CHECK(grads.size() > 0, "`grads` is empty, allowed: at least one tensor");
  modulate_(dense_arrays(grads), group, weights, noise, seed);
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) { m.impl("modulate_", TORCH_BOX(&modgrad::of_tensors)); }
