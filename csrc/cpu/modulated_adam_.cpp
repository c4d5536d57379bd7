// Adam and AdamW with the weight of each parameter's group folded in: one pass.
#include "half.h"
#include "update_rule.h"

namespace modgrad {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Elements between a prefetch and its use, and those that one round of prefetches covers. Hardware begins anew
// in every page and of every array: on one core, 22 M float32 parameters take 0.95 to 0.98 times as long. A
// short array is over before that pays: where all were prefetched, 1,000 small tensors took 1.08 times as long.
constexpr int64_t kAhead = 256, kRound = 64, kLeastPrefetched = 8192;

template <typename T, typename S>
struct Pointers {
  T* param;
  const T* grad;
  S *m, *v, *largest;

  Pointers from(int64_t i) const {
    return {param + i, grad + i, m + i, v + i, largest != nullptr ? largest + i : nullptr};
  }
};

template <bool kAmsgrad, bool kNoise, typename T, typename S>
inline __attribute__((always_inline)) void loop(Pointers<T, S> at, const wide_t<T>* added_, int64_t n, wide_t<T> weight,
                                                const Adam<wide_t<T>>& a_) {
  using W = wide_t<T>;
  T* __restrict__ param = at.param;
  const T* __restrict__ grad = at.grad;
  S* __restrict__ first = at.m;
  S* __restrict__ second = at.v;
  S* __restrict__ largest = at.largest;
  const W* __restrict__ added = added_;
  const Adam<W> a = a_;
#pragma GCC ivdep  // no array is another: no checks of that every kRound elements
  for (int64_t i = 0; i < n; ++i) {
    W x = static_cast<W>(grad[i]) * weight;
    if (kNoise) x += added[i];
    W p = static_cast<W>(param[i]), m = static_cast<W>(first[i]), v = static_cast<W>(second[i]);
    W used = adam_moments(a, x, p, m, v);
    first[i] = static_cast<S>(m);
    second[i] = static_cast<S>(v);
    if (kAmsgrad) {
      used = larger(static_cast<W>(largest[i]), used);
      largest[i] = static_cast<S>(used);
    }
    adam_parameter(a, p, m, used);
    param[i] = static_cast<T>(p);
  }
}

template <bool kAmsgrad, bool kNoise, typename T, typename S>
inline __attribute__((always_inline)) void step(Pointers<T, S> at, const wide_t<T>* added, int64_t n, wide_t<T> weight,
                                                const Adam<wide_t<T>>& a) {
  const auto run = [&](int64_t begin, int64_t size) __attribute__((always_inline)) {
    loop<kAmsgrad, kNoise>(at.from(begin), kNoise ? added + begin : nullptr, size, weight, a);
  };
  int64_t i = 0;
  for (; n >= kLeastPrefetched && i + kAhead + kRound <= n; i += kRound) {
    for (int64_t j = i + kAhead; j < i + kAhead + kRound; j += kCacheLine / static_cast<int64_t>(sizeof(T))) {
      prefetch(at.param + j);
      prefetch(at.grad + j);
      prefetch(at.m + j);
      prefetch(at.v + j);
    }
    run(i, kRound);
  }
  run(i, n - i);
}

#define MODGRAD_ADAM(T, S)                                                                                        \
  MODGRAD_CLONES void update(Pointers<T, S> at, const wide_t<T>* added, int64_t n, wide_t<T> weight,              \
                             const Adam<wide_t<T>>& a) {                                                          \
    if (at.largest != nullptr)                                                                                    \
      added != nullptr ? step<true, true>(at, added, n, weight, a) : step<true, false>(at, added, n, weight, a);  \
    else                                                                                                          \
      added != nullptr ? step<false, true>(at, added, n, weight, a) : step<false, false>(at, added, n, weight, a);\
  }
MODGRAD_ADAM(float, float)
MODGRAD_ADAM(double, double)
MODGRAD_ADAM(double, float)
MODGRAD_ADAM(BFloat16, BFloat16)
MODGRAD_ADAM(BFloat16, float)

template <typename S>
void update(Pointers<Half, S> at, const float* added, int64_t n, float weight, const Adam<float>& a) {
  float param[kHalfBlock], grad[kHalfBlock], m[kHalfBlock], v[kHalfBlock], largest[kHalfBlock];
  const bool amsgrad = at.largest != nullptr;
  for (int64_t begin = 0; begin < n; begin += kHalfBlock) {
    const int64_t size = std::min(kHalfBlock, n - begin);
    widen(at.param + begin, param, size);
    widen(at.grad + begin, grad, size);
    widen(at.m + begin, m, size);
    widen(at.v + begin, v, size);
    if (amsgrad) widen(at.largest + begin, largest, size);
    update(Pointers<float, float>{param, grad, m, v, amsgrad ? largest : nullptr},
           added != nullptr ? added + begin : nullptr, size, weight, a);
    narrow(param, at.param + begin, size);
    narrow(m, at.m + begin, size);
    narrow(v, at.v + begin, size);
    if (amsgrad) narrow(largest, at.largest + begin, size);
  }
}

// Every step counter one further; what the new numbers mean. The powers cost 60 ns a parameter, and the
// parameters of a group mostly took the same number of steps.
std::vector<Bias> advance(const std::vector<Update>& updates, double beta1, double beta2) {
  std::vector<Bias> out(updates.size());
  for (size_t i = 0; i < updates.size(); ++i) {
    *updates[i].step += 1;
    out[i] = i > 0 && *updates[i].step == *updates[i - 1].step ? out[i - 1] : bias(beta1, beta2, *updates[i].step);
  }
  return out;
}

template <typename List>
void modulated_adam_(const List& params, const HandleList& grads, const List& exp_avgs, const List& exp_avg_sqs,
                     const List& max_exp_avg_sqs, const List& state_steps, const std::vector<int64_t>& group,
                     const Tensor& weights, double lr, double beta1, double beta2, double eps, double weight_decay,
                     bool decoupled, bool maximize, bool scale_update, const std::optional<Tensor>& lr_tensor,
                     const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                     const std::optional<Tensor>& noise, const std::optional<Tensor>& seed,
                     const std::optional<std::vector<int64_t>>& stream, const std::optional<Tensor>& sq_norms,
                     const std::optional<std::string>& rule, const std::optional<std::vector<double>>& parameters) {
  const Handles p("params", params), g("grads", grads), m("exp_avgs", exp_avgs), v("exp_avg_sqs", exp_avg_sqs),
      largest("max_exp_avg_sqs", max_exp_avg_sqs), steps("state_steps", state_steps);
  const UpdateOptions options{maximize, scale_update, lr_tensor, grad_scale, found_inf, noise,
                              seed,     stream,       sq_norms,  rule,       parameters};
  options.check(weights, p.size());
  const bool amsgrad = largest.size() > 0;
  UpdateLists lists{p, g, {&m, &v}, &steps, group, weights.numel(), Device::of(weights.get())};
  if (amsgrad) lists.states.push_back(&largest);
  const std::vector<Update> updates = checked_updates(lists, kTensorsPerThread);
  decide_weights(updates, options, weights);
  const UpdateRun run{updates, options, lr, weights.const_data_ptr<float>()};
  if (run.value(found_inf, 0) != 0) return;
  const std::vector<Bias> biases = advance(updates, beta1, beta2);
  run([&](auto* t, auto* s, const Update& u, const Weighted& w, int64_t begin, int64_t n, const auto* added) {
    using T = std::remove_pointer_t<decltype(t)>;
    using S = std::remove_pointer_t<decltype(s)>;
    const Pointers<T, S> at{static_cast<T*>(u.param) + begin, static_cast<const T*>(u.grad) + begin,
                            static_cast<S*>(u.state[0]) + begin, static_cast<S*>(u.state[1]) + begin,
                            amsgrad ? static_cast<S*>(u.state[2]) + begin : nullptr};
    update(at, added, n, static_cast<wide_t<T>>(w.gradient),
           adam<wide_t<T>>(w.rate, beta1, beta2, eps, weight_decay, decoupled, biases[&u - updates.data()]));
  });
}

}  // namespace
}  // namespace modgrad

STABLE_TORCH_LIBRARY_IMPL(modgrad_native, CPU, m) {
  m.impl("modulated_adam_", TORCH_BOX(&modgrad::modulated_adam_<modgrad::HandleList>));
  m.impl("modulated_adam_retained_", TORCH_BOX(&modgrad::modulated_adam_<modgrad::Tensor>));
}
