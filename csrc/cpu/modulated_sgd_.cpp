// SGD with the weight of each parameter's group folded in: one pass.
#include "half.h"
#include "update_rule.h"

namespace modgrad {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

enum class Momentum { kNone, kPlain, kNesterov };

template <Momentum kMomentum, bool kNoise, typename T, typename S>
inline __attribute__((always_inline)) void step(T* __restrict__ param, const T* __restrict__ grad,
                                                S* __restrict__ buffer, const wide_t<T>* __restrict__ added, int64_t n,
                                                wide_t<T> weight, const Sgd<wide_t<T>>& shared) {
  using W = wide_t<T>;
  const Sgd<W> s = shared;
  for (int64_t i = 0; i < n; ++i) {
    W x = static_cast<W>(grad[i]) * weight;
    if (kNoise) x += added[i];
    W p = static_cast<W>(param[i]);
    if (kMomentum != Momentum::kNone) {
      W b = static_cast<W>(buffer[i]);
      sgd_element<kMomentum == Momentum::kNesterov>(s, x, p, b);
      buffer[i] = static_cast<S>(b);
    } else {
      sgd_element(s, x, p);
    }
    param[i] = static_cast<T>(p);
  }
}

template <Momentum kMomentum, typename T, typename S>
inline __attribute__((always_inline)) void steps(T* p, const T* g, S* b, const wide_t<T>* added, int64_t n,
                                                 wide_t<T> weight, const Sgd<wide_t<T>>& s) {
  added != nullptr ? step<kMomentum, true>(p, g, b, added, n, weight, s)
                   : step<kMomentum, false>(p, g, b, added, n, weight, s);
}

#define MODGRAD_SGD(T, S)                                                                                   \
  MODGRAD_CLONES void update(T* p, const T* g, S* b, const wide_t<T>* added, int64_t n, wide_t<T> weight,   \
                             const Sgd<wide_t<T>>& s, Momentum momentum) {                                  \
    if (momentum == Momentum::kNone) return steps<Momentum::kNone>(p, g, b, added, n, weight, s);           \
    if (momentum == Momentum::kPlain) return steps<Momentum::kPlain>(p, g, b, added, n, weight, s);         \
    steps<Momentum::kNesterov>(p, g, b, added, n, weight, s);                                               \
  }
MODGRAD_SGD(float, float)
MODGRAD_SGD(double, double)
MODGRAD_SGD(double, float)
MODGRAD_SGD(BFloat16, BFloat16)
MODGRAD_SGD(BFloat16, float)

template <typename S>
void update(Half* p, const Half* g, S* b, const float* added, int64_t n, float weight, const Sgd<float>& s,
            Momentum momentum) {
  float param[kHalfBlock], grad[kHalfBlock], buffer[kHalfBlock];
  for (int64_t begin = 0; begin < n; begin += kHalfBlock) {
    const int64_t size = std::min(kHalfBlock, n - begin);
    widen(p + begin, param, size);
    widen(g + begin, grad, size);
    if (b != nullptr) widen(b + begin, buffer, size);
    update(param, grad, buffer, added != nullptr ? added + begin : nullptr, size, weight, s, momentum);
    narrow(param, p + begin, size);
    if (b != nullptr) narrow(buffer, b + begin, size);
  }
}

template <typename List>
void modulated_sgd_(const List& params, const HandleList& grads, const List& momentum_buffers,
                    const std::vector<int64_t>& group, const Tensor& weights, double lr, double momentum,
                    double dampening, double weight_decay, bool nesterov, bool is_first_step, bool maximize,
                    bool scale_update, const std::optional<Tensor>& lr_tensor, const std::optional<Tensor>& grad_scale,
                    const std::optional<Tensor>& found_inf, const std::optional<Tensor>& noise,
                    const std::optional<Tensor>& seed, const std::optional<std::vector<int64_t>>& stream,
                    const std::optional<Tensor>& sq_norms, const std::optional<std::string>& rule,
                    const std::optional<std::vector<double>>& parameters) {
  const Handles p("params", params), g("grads", grads), b("momentum_buffers", momentum_buffers);
  const UpdateOptions options{maximize, scale_update, lr_tensor, grad_scale, found_inf, noise,
                              seed,     stream,       sq_norms,  rule,       parameters};
  options.check(weights, p.size());
  UpdateLists lists{p, g, {}, nullptr, group, weights.numel(), Device::of(weights.get())};
  if (b.size() > 0) lists.states.push_back(&b);
  const std::vector<Update> updates = checked_updates(lists, kTensorsPerThread);
  decide_weights(updates, options, weights);
  const UpdateRun run{updates, options, lr, weights.const_data_ptr<float>()};
  if (run.value(found_inf, 0) != 0) return;
  const Momentum kind = b.size() == 0 ? Momentum::kNone : nesterov ? Momentum::kNesterov : Momentum::kPlain;
  run([&](auto* t, auto* s, const Update& u, const Weighted& w, int64_t begin, int64_t n, const auto* added) {
    using T = std::remove_pointer_t<decltype(t)>;
    using S = std::remove_pointer_t<decltype(s)>;
    S* buffer = kind != Momentum::kNone ? static_cast<S*>(u.state[0]) + begin : nullptr;
    if (buffer != nullptr && is_first_step) std::fill(buffer, buffer + n, S(0));
    update(static_cast<T*>(u.param) + begin, static_cast<const T*>(u.grad) + begin, buffer, added, n,
           static_cast<wide_t<T>>(w.gradient),
           sgd<wide_t<T>>(w.rate, momentum, dampening, weight_decay, is_first_step), kind);
  });
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) {
  m.impl("modulated_sgd_", TORCH_BOX(&modgrad::modulated_sgd_<modgrad::HandleList>));
  m.impl("modulated_sgd_retained_", TORCH_BOX(&modgrad::modulated_sgd_<modgrad::Tensor>));
}
