// Parameters and their gradients of several losses, for a kernel that must have all of them in the arguments of one
// launch: 4 bytes a tensor, and 4.25 more a parameter.
#pragma once

#include <array>
#include <map>
#include <tuple>

#include "compact_list.h"
#include "same_losses.h"

namespace modgrad {

constexpr int kMostLossKinds = 32;

// What parameters have in common: group, dtype, and the losses that reach them, in order. They are the list's kinds.
struct LossKind {
  int32_t group;
  std::array<int32_t, kTile> loss;  // -1 behind the last
  int32_t dtype;

  bool operator<(const LossKind& other) const {
    return std::tie(group, loss, dtype) < std::tie(other.group, other.loss, other.dtype);
  }
  int num_losses() const { return static_cast<int>(std::find(loss.begin(), loss.end(), -1) - loss.begin()); }
};

// A tensor, as a Span reads it.
struct Place {
  void* out;
  int64_t numel;
};

// Tensors that have elements, by kind of their parameters: a parameter, then its gradients, then the next one.
struct LossKinds {
  std::map<LossKind, std::vector<Place>> places;
  Span span;
  int64_t num_parameters = 0;
  bool fits = true;  // a compact list can hold them, if it is long enough

  // Ref: out, numel, group, dtype. Losses: first [P + 1], and of each gradient grads.in and loss.
  template <typename Ref, typename Losses>
  LossKinds(const std::vector<Ref>& out, const Losses& losses) {
    std::vector<Place> all;
    for (size_t p = 0; p < out.size(); ++p) {
      const int64_t first = losses.first[p], count = losses.first[p + 1] - first, numel = out[p].numel;
      if (numel == 0) continue;
      if (count > kTile) {
        fits = false;
        return;
      }
      LossKind kind = {out[p].group, {}, static_cast<int32_t>(out[p].dtype)};
      kind.loss.fill(-1);
      std::copy_n(losses.loss.begin() + first, count, kind.loss.begin());
      all.push_back({out[p].out, numel});
      for (int64_t i = first; i < first + count; ++i) all.push_back({const_cast<void*>(losses.grads[i].in), numel});
      std::vector<Place>& alike = places[kind];
      alike.insert(alike.end(), all.end() - (1 + count), all.end());
      num_parameters += 1;
    }
    span = span_of(all);
    fits = span.fits && places.size() <= kMostLossKinds;
  }
};

// `size` elements of a parameter, and of its gradients, from `begin` on.
struct LossChunk {
  int kind, place;  // of the parameter; its gradients are behind it
  int64_t begin, size;
};

template <int kCapacity>
struct CompactLosses {
  // Most parameters have a gradient.
  static constexpr int kMost = kCapacity, kMostParameters = kCapacity / 2, kStride = 16;
  char* lowest;
  int32_t shift, size, num_chunks;
  SameLossesList<kMostLossKinds> kinds;
  int32_t first_of_kind[kMostLossKinds + 1], first_place[kMostLossKinds];
  uint8_t dtype[kMostLossKinds], num_losses[kMostLossKinds];
  int32_t first_chunk[kMostParameters / kStride];  // of every 16th parameter
  uint32_t place[kCapacity];                       // in units, from `lowest` on
  uint32_t numel[kMostParameters];
  static_assert(kMostParameters % kStride == 0, "no part of a stride");
  static_assert(kMostParameters * ((int64_t{1} << 32) / kChunkElements) <= INT32_MAX, "chunks are counted in 32 bits");

  static bool holds(const LossKinds& sorted) {
    return sorted.fits && sorted.num_parameters <= kMostParameters && sorted.span.num_tensors <= kCapacity;
  }

  explicit CompactLosses(const LossKinds& sorted)
      : lowest(reinterpret_cast<char*>(sorted.span.lowest)), shift(sorted.span.shift), size(0), num_chunks(0) {
    int num_places = 0;
    kinds.size = 0;
    kinds.first_chunk[0] = first_of_kind[0] = 0;
    for (const auto& [kind, tensors] : sorted.places) {
      const int k = kinds.size++, stride = 1 + kind.num_losses();
      kinds.group[k] = kind.group;
      std::copy_n(kind.loss.begin(), kTile, kinds.loss[k]);
      std::copy_n(kind.loss.begin(), kTile, kinds.loss[k] + kTile);
      dtype[k] = static_cast<uint8_t>(kind.dtype);
      num_losses[k] = static_cast<uint8_t>(kind.num_losses());
      first_place[k] = num_places;
      for (size_t i = 0; i < tensors.size(); ++i) {
        place[num_places++] =
            static_cast<uint32_t>((reinterpret_cast<uintptr_t>(tensors[i].out) - sorted.span.lowest) >> shift);
        if (i % stride > 0) continue;
        if (size % kStride == 0) first_chunk[size / kStride] = num_chunks;
        numel[size++] = static_cast<uint32_t>(tensors[i].numel);
        num_chunks += static_cast<int32_t>(count_chunks(tensors[i].numel));
      }
      kinds.first_chunk[k + 1] = num_chunks;
      first_of_kind[k + 1] = size;
    }
  }

  MODGRAD_HD void* tensor(int index) const { return lowest + (static_cast<uint64_t>(place[index]) << shift); }

  // As a CompactList does.
  MODGRAD_HD LossChunk find_chunk(int32_t chunk) const {
    const int stride = find_tensor(first_chunk, (size + kStride - 1) / kStride, chunk);
    int t = kStride * stride;
    int64_t left = chunk - first_chunk[stride];
    for (int64_t count; left >= (count = count_chunks(numel[t])); ++t) left -= count;
    const int64_t begin = left * kChunkElements, rest = numel[t] - begin;
    const int kind = find_tensor(first_of_kind, kinds.size, t);
    return {kind, first_place[kind] + (t - first_of_kind[kind]) * (1 + num_losses[kind]), begin,
            rest < kChunkElements ? rest : kChunkElements};
  }
};

}  // namespace modgrad
