// What the classes of a sample weigh in its cross entropy: q_bc = w_c ((1 - s) t_bc + s / C).
#pragma once

#include "math.h"

namespace modgrad {

// Numbers that are all float32 or all float64; null data where there are none.
struct Reals {
  const void* data;
  bool is_double;

  template <typename T>
  MODGRAD_HD T at(int64_t i) const {
    return is_double ? static_cast<T>(static_cast<const double*>(data)[i])
                     : static_cast<T>(static_cast<const float*>(data)[i]);
  }
};

// Classes [B], or the probabilities t [B, C].
struct Targets {
  const int64_t* classes;  // null where there are probabilities
  Reals probabilities, class_weights;
  int64_t num_rows, ignore_index;
  double smoothing;

  // Whether classes other than the true one have mass.
  MODGRAD_HD bool is_spread() const { return classes == nullptr || smoothing > 0; }

  MODGRAD_HD bool counts(int64_t b) const { return classes == nullptr || classes[b] != ignore_index; }

  // The true class, -1 where there are probabilities.
  MODGRAD_HD int64_t true_class(int64_t b) const { return classes == nullptr ? -1 : classes[b]; }

  MODGRAD_HD bool is_valid(int64_t b, int64_t num_classes) const {
    return classes == nullptr || (classes[b] >= 0 && classes[b] < num_classes);
  }

  template <typename T>
  MODGRAD_HD T class_weight(int64_t c) const {
    return class_weights.data == nullptr ? T(1) : class_weights.at<T>(c);
  }

  // The mass of the true class alone; the rest of q is spread().
  template <typename T>
  MODGRAD_HD T peak(int64_t b) const {
    return classes == nullptr ? T(0) : static_cast<T>(1 - smoothing) * class_weight<T>(classes[b]);
  }

  template <typename T>
  MODGRAD_HD T spread(int64_t b, int64_t c, int64_t num_classes) const {
    T mass = static_cast<T>(smoothing / static_cast<double>(num_classes));
    if (classes == nullptr) mass += static_cast<T>(1 - smoothing) * probabilities.at<T>(b * num_classes + c);
    return class_weight<T>(c) * mass;
  }
};

// What backward brings, and what forward left for it.
struct Upstream {
  const double *lse, *mass;  // [M, B]; [B + 1], of which the last divides the means
  Reals grad_losses;         // [M]
  const float* weights;      // [M], null: all 1

  MODGRAD_HD double coefficient(int64_t m, int64_t num_rows) const {
    const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[m]);
    return grad_losses.at<double>(m) * weight / mass[num_rows];
  }
};

}  // namespace modgrad
