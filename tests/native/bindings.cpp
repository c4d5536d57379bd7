// Headers of csrc for Python: the CPU runs the very formulas that the GPU does.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <tuple>

#include "../../csrc/compact_list.h"
#include "../../csrc/compact_losses.h"
#include "../../csrc/math.h"
#include "../../csrc/plan.h"
#include "../../csrc/rules.h"
#include "../../csrc/updates.h"

namespace py = pybind11;

// A tensor as a CompactList reads it, at an address where there need not be memory.
struct MadeUpTensor {
  void* out;
  int64_t numel;
  int group, dtype;
};

// Gradients as CompactLosses reads them.
struct MadeUpLosses {
  struct Grad {
    const void* in;
  };
  std::vector<Grad> grads;
  std::vector<int32_t> loss;
  std::vector<int64_t> first;
};

PYBIND11_MODULE(modgrad_native_formulas, m) {
  m.def("philox", [](std::array<uint32_t, 4> c, uint64_t key) {
    const modgrad::Block4 out = modgrad::philox({{c[0], c[1], c[2], c[3]}}, key);
    return std::array<uint32_t, 4>{out.x[0], out.x[1], out.x[2], out.x[3]};
  });
  m.def("normals", [](uint64_t seed, uint32_t tensor, uint64_t quad) {
    const modgrad::Normals4 out = modgrad::normals(seed, tensor, quad);
    return std::array<float, 4>{out.z[0], out.z[1], out.z[2], out.z[3]};
  });
  m.def("standard_deviation", [](py::array_t<double> x) {
    modgrad::Spread s;
    const double* p = x.data();
    for (int64_t i = 0; i < x.size(); ++i) {
      s.sum += p[i] - p[0];
      s.squares += (p[i] - p[0]) * (p[i] - p[0]);
    }
    return modgrad::standard_deviation(s, x.size());
  });
  m.def("plan", [](std::vector<int64_t> sizes, int64_t chunk_size, int64_t task_size) {
    const modgrad::Plan plan = modgrad::make_plan(sizes, chunk_size, task_size);
    std::vector<std::tuple<int64_t, int64_t, int64_t>> chunks;
    for (const modgrad::Chunk& c : plan.chunks) chunks.emplace_back(c.tensor, c.begin, c.size);
    return std::make_tuple(chunks, plan.tasks);
  });
  // Address, begin, size and kind of every chunk of tensors (address, numel, group, dtype); none where they do not fit.
  using Chunks = std::vector<std::tuple<uintptr_t, int64_t, int64_t, int>>;
  m.def("compact_chunks", [](std::vector<std::tuple<uintptr_t, int64_t, int, int>> tensors) -> std::optional<Chunks> {
    std::vector<MadeUpTensor> sorted;
    for (const auto& [address, numel, group, dtype] : tensors)
      sorted.push_back({reinterpret_cast<void*>(address), numel, group, dtype});
    const modgrad::Span span = modgrad::span_of(sorted);
    constexpr int kMost = 512;
    if (!span.fits || span.num_tensors > kMost) return std::nullopt;
    const modgrad::CompactList<kMost> list(sorted, span);
    Chunks chunks;
    for (int c = 0; c < list.num_chunks; ++c) {
      const modgrad::CompactChunk chunk = list.find_chunk(c);
      chunks.emplace_back(reinterpret_cast<uintptr_t>(chunk.tensor), chunk.begin, chunk.size, chunk.kind);
    }
    return chunks;
  });
  // Of parameters (address, numel, group, dtype, {loss: address of its gradient}): addresses of a parameter and its
  // gradients, begin, size, group, dtype and losses of every chunk; and of all alike, where their chunks begin.
  using Parameter = std::tuple<uintptr_t, int64_t, int, int, std::map<int, uintptr_t>>;
  using ChunkOfLosses = std::tuple<std::vector<uintptr_t>, int64_t, int64_t, int, int, std::vector<int>>;
  m.def("compact_losses", [](std::vector<Parameter> parameters)
            -> std::optional<std::tuple<std::vector<ChunkOfLosses>, std::vector<int64_t>>> {
    std::vector<MadeUpTensor> out;
    MadeUpLosses losses = {{}, {}, {0}};
    for (const auto& [address, numel, group, dtype, grads] : parameters) {
      out.push_back({reinterpret_cast<void*>(address), numel, group, dtype});
      for (const auto& [loss, grad] : grads) {
        losses.grads.push_back({reinterpret_cast<const void*>(grad)});
        losses.loss.push_back(loss);
      }
      losses.first.push_back(static_cast<int64_t>(losses.grads.size()));
    }
    const modgrad::LossKinds kinds(out, losses);
    using List = modgrad::CompactLosses<512>;
    if (!List::holds(kinds)) return std::nullopt;
    const List list(kinds);
    std::vector<ChunkOfLosses> chunks;
    for (int c = 0; c < list.num_chunks; ++c) {
      const modgrad::LossChunk chunk = list.find_chunk(c);
      const int count = list.num_losses[chunk.kind];
      std::vector<uintptr_t> places;
      for (int i = 0; i <= count; ++i) places.push_back(reinterpret_cast<uintptr_t>(list.tensor(chunk.place + i)));
      const int32_t* loss = list.kinds.loss[chunk.kind];
      chunks.emplace_back(places, chunk.begin, chunk.size, list.kinds.group[chunk.kind], list.dtype[chunk.kind],
                          std::vector<int>(loss, loss + count));
    }
    const int64_t* first = list.kinds.first_chunk;
    return std::make_tuple(chunks, std::vector<int64_t>(first, first + list.kinds.size + 1));
  });
  m.def("decide", [](int name, std::vector<double> parameters, int64_t num_modalities, int64_t num_losses,
                     std::vector<float> scores, std::vector<double> gram, std::vector<float> losses,
                     std::vector<std::vector<float>> states) {
    modgrad::Rule rule = {static_cast<modgrad::RuleName>(name), {}, num_modalities, num_losses, scores.data(),
                          gram.data(), losses.data(), {}};
    std::copy(parameters.begin(), parameters.end(), rule.parameters);
    for (size_t s = 0; s < states.size(); ++s) rule.states[s] = states[s].data();
    std::vector<float> weights(num_modalities * num_losses), next(states.size() * num_losses);
    std::vector<double> scratch(2 * num_modalities * num_losses);
    for (int64_t i = 0; i < num_modalities; ++i)
      modgrad::decide(rule, i, {weights.data(), next.data(), scratch.data()});
    return std::make_tuple(weights, next);
  });
  m.def("weighted", [](double lr, double weight, double noise, double spread, double grad_scale, bool scale_update,
                       bool maximize) {
    const modgrad::Weighted w = modgrad::weighted(lr, weight, noise, spread, grad_scale, scale_update, maximize);
    return std::make_tuple(w.gradient, w.noise, w.rate);
  });
  m.def("sgd", [](double x, double p, double b, double lr, double momentum, double dampening, double weight_decay,
                  bool nesterov, bool is_first_step) {
    const auto s = modgrad::sgd<double>(lr, momentum, dampening, weight_decay, is_first_step);
    if (is_first_step) b = 0;
    nesterov ? modgrad::sgd_element<true>(s, x, p, b) : modgrad::sgd_element<false>(s, x, p, b);
    return std::make_tuple(p, b);
  });
  m.def("sgd_without_momentum", [](double x, double p, double lr, double weight_decay) {
    modgrad::sgd_element(modgrad::sgd<double>(lr, 0, 0, weight_decay, false), x, p);
    return p;
  });
  m.def("adam", [](double x, double p, double m1, double v, double largest, double step, double lr, double beta1,
                   double beta2, double eps, double weight_decay, bool decoupled) {
    const auto bias = modgrad::bias(beta1, beta2, step);
    const auto a = modgrad::adam<double>(lr, beta1, beta2, eps, weight_decay, decoupled, bias);
    largest = modgrad::larger(largest, modgrad::adam_moments(a, x, p, m1, v));
    modgrad::adam_parameter(a, p, m1, largest);
    return std::make_tuple(p, m1, v, largest);
  });
  m.def("larger", [](double largest, double v) { return modgrad::larger(largest, v); });
}
