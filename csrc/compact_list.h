// A list of tensors in 8.25 bytes each, for a kernel that must have all of them in the arguments of one launch.
#pragma once

#include <algorithm>
#include <vector>

#include "chunks.h"

namespace modgrad {

// A group and a dtype. Tensors are sorted by kind, and what is kept is where each kind begins.
constexpr int kDtypes = 4, kMostKinds = 8 * kDtypes;

template <typename Ref>
int kind_of(const Ref& tensor) {
  return kDtypes * tensor.group + static_cast<int>(tensor.dtype);
}

// Where tensors lie: all of them whole units of 2^shift bytes past the lowest. The unit is as large as it can be, so
// that 32 bits span 16 GiB of float32 that begin anywhere, and 2 TiB of allocations at multiples of 512 bytes. A
// tensor without elements counts nowhere: its address may be null.
struct Span {
  uintptr_t lowest = UINTPTR_MAX;
  int shift = 0;
  int64_t num_tensors = 0;
  bool fits = true;  // 32 bits hold every distance and every size
};

template <typename Ref>
Span span_of(const std::vector<Ref>& tensors) {
  Span span;
  for (const Ref& tensor : tensors) {
    if (tensor.numel == 0) continue;
    span.lowest = std::min(span.lowest, reinterpret_cast<uintptr_t>(tensor.out));
    span.num_tensors += 1;
    span.fits = span.fits && tensor.numel <= int64_t{UINT32_MAX};
  }
  uintptr_t bits = 0;  // those of any distance
  for (const Ref& tensor : tensors)
    if (tensor.numel > 0) bits |= reinterpret_cast<uintptr_t>(tensor.out) - span.lowest;
  while (bits != 0 && (bits >> span.shift) % 2 == 0) ++span.shift;
  span.fits = span.fits && bits >> span.shift <= UINT32_MAX;
  return span;
}

// `size` elements of a tensor of some kind.
struct CompactChunk {
  void* tensor;
  int64_t begin, size;
  int kind;
};

template <int kCapacity>
struct CompactList {
  static constexpr int kMost = kCapacity, kStride = 16;
  char* lowest;
  int32_t shift, size, num_chunks;
  int32_t first_of_kind[kMostKinds + 1];
  int32_t first_chunk[kCapacity / kStride];  // of every 16th tensor; the sizes of those between give theirs
  uint32_t place[kCapacity];                 // in units, from `lowest` on
  uint32_t numel[kCapacity];
  static_assert(kCapacity % kStride == 0, "no part of a stride");
  static_assert(kCapacity * ((int64_t{1} << 32) / kChunkElements) <= INT32_MAX, "chunks are counted in 32 bits");

  // Of tensors sorted by kind, with a span that fits, and no more than kCapacity that have elements.
  template <typename Ref>
  CompactList(const std::vector<Ref>& sorted, const Span& span)
      : lowest(reinterpret_cast<char*>(span.lowest)), shift(span.shift), size(0), num_chunks(0), first_of_kind{} {
    for (const Ref& tensor : sorted) {
      if (tensor.numel == 0) continue;
      if (size % kStride == 0) first_chunk[size / kStride] = num_chunks;
      place[size] = static_cast<uint32_t>((reinterpret_cast<uintptr_t>(tensor.out) - span.lowest) >> shift);
      numel[size] = static_cast<uint32_t>(tensor.numel);
      num_chunks += static_cast<int32_t>(count_chunks(tensor.numel));
      size += 1;
      first_of_kind[kind_of(tensor) + 1] += 1;
    }
    for (int kind = 0; kind < kMostKinds; ++kind) first_of_kind[kind + 1] += first_of_kind[kind];
  }

  // By halves among every 16th tensor, then one tensor after the other: 15 sizes at most.
  MODGRAD_HD CompactChunk find_chunk(int32_t chunk) const {
    const int stride = find_tensor(first_chunk, (size + kStride - 1) / kStride, chunk);
    int t = kStride * stride;
    int64_t left = chunk - first_chunk[stride];
    for (int64_t count; left >= (count = count_chunks(numel[t])); ++t) left -= count;
    const int64_t begin = left * kChunkElements, rest = numel[t] - begin;
    return {lowest + (static_cast<uint64_t>(place[t]) << shift), begin, rest < kChunkElements ? rest : kChunkElements,
            find_tensor(first_of_kind, kMostKinds, t)};
  }
};

}  // namespace modgrad
