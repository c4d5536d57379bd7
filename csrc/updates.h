// The optimizer updates of one element, with the weight of its group folded in.
#pragma once

#include "math.h"

namespace modgrad {

// How a group's weight acts: the optimizer sees gradient * g + noise * z, and the learning rate `rate`.
struct Weighted {
  double gradient, noise, rate;
};

// `spread` is the standard deviation of the gradient as it is in memory, before the division by grad_scale.
MODGRAD_HD Weighted weighted(double lr, double weight, double noise, double spread, double grad_scale,
                             bool scale_update, bool maximize) {
  const double sign = maximize ? -1.0 : 1.0;
  return {sign * (scale_update ? 1.0 : weight) / grad_scale, noise == 0 ? 0.0 : sign * noise * spread / grad_scale,
          scale_update ? lr * weight : lr};
}

template <typename W>
struct Sgd {
  W rate, momentum, undamped, weight_decay;
};

// In the first step the buffer counts as 0, and is not damped.
template <typename W>
MODGRAD_HD Sgd<W> sgd(double rate, double momentum, double dampening, double weight_decay, bool is_first_step) {
  return {static_cast<W>(rate), static_cast<W>(momentum), static_cast<W>(is_first_step ? 1 : 1 - dampening),
          static_cast<W>(weight_decay)};
}

// x + weight_decay p, and x without weight decay: 0 times an infinite parameter is not 0.
template <typename W>
MODGRAD_HD W decayed(W x, W weight_decay, W p) {
  return weight_decay != 0 ? x + weight_decay * p : x;
}

template <typename W>
MODGRAD_HD void sgd_element(const Sgd<W>& s, W x, W& p) {
  p -= s.rate * decayed(x, s.weight_decay, p);
}

// kNesterov at compile time: a choice in the loop over float16 keeps compilers from vectorising it.
template <bool kNesterov, typename W>
MODGRAD_HD void sgd_element(const Sgd<W>& s, W x, W& p, W& buffer) {
  x = decayed(x, s.weight_decay, p);
  buffer = s.momentum * buffer + s.undamped * x;
  p -= s.rate * (kNesterov ? x + s.momentum * buffer : buffer);
}

// What a step number means: one minus the powers of the betas, the second under a root.
struct Bias {
  double first, second_root;
};

MODGRAD_HD Bias bias(double beta1, double beta2, double step) {
  return {1 - std::pow(beta1, step), std::sqrt(1 - std::pow(beta2, step))};
}

template <typename W>
struct Adam {
  W step_size, kept, weight_decay, new1, beta2, new2, unbias, eps;
};

template <typename W>
MODGRAD_HD Adam<W> adam(double rate, double beta1, double beta2, double eps, double weight_decay, bool decoupled,
                        Bias b) {
  return {static_cast<W>(rate / b.first),
          static_cast<W>(decoupled ? 1 - rate * weight_decay : 1.0),
          static_cast<W>(decoupled ? 0.0 : weight_decay),
          static_cast<W>(1 - beta1),
          static_cast<W>(beta2),
          static_cast<W>(1 - beta2),
          static_cast<W>(1 / b.second_root),
          static_cast<W>(eps)};
}

// The moments of the gradient; returns the second, which amsgrad replaces by its maximum so far.
template <typename W>
MODGRAD_HD W adam_moments(const Adam<W>& a, W x, W p, W& m, W& v) {
  x = decayed(x, a.weight_decay, p);
  m += a.new1 * (x - m);
  v = a.beta2 * v + a.new2 * x * x;
  return v;
}

template <typename W>
MODGRAD_HD void adam_parameter(const Adam<W>& a, W& p, W m, W v) {
  p = p * a.kept - a.step_size * (m / (std::sqrt(v) * a.unbias + a.eps));
}

// NaN where either is NaN, as torch.maximum
template <typename W>
MODGRAD_HD W larger(W largest, W v) {
  return largest >= v || largest != largest ? largest : v;
}

}  // namespace modgrad
