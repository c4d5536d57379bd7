// Chunks by group, for kernels that add what was computed a chunk.
#pragma once

#include <tuple>

#include "tensor_list.cuh"

namespace modgrad {

// The chunks of group first_group + i are [first_chunk[i], first_chunk[i + 1]).
template <int kCapacity>
struct GroupList {
  int64_t first_chunk[kCapacity + 1];
  int64_t first_group;
  int32_t size;
};

// As many groups from first_group on as the list takes.
template <int kCapacity>
GroupList<kCapacity> group_list(const std::vector<int64_t>& first_chunk, int64_t first_group) {
  GroupList<kCapacity> list;
  const int64_t left = static_cast<int64_t>(first_chunk.size()) - 1 - first_group;
  list.first_group = first_group;
  list.size = static_cast<int32_t>(std::min<int64_t>(kCapacity, left));
  std::copy_n(first_chunk.begin() + first_group, list.size + 1, list.first_chunk);
  return list;
}

// Calls launch(list) for as many lists as it takes.
template <int kCapacity, typename Launch>
cudaError_t for_each_group_list(const std::vector<int64_t>& first_chunk, Launch launch) {
  const int64_t num_groups = static_cast<int64_t>(first_chunk.size()) - 1;
  for (int64_t g = 0; g < num_groups; g += kCapacity)
    if (const cudaError_t error = launch(group_list<kCapacity>(first_chunk, g)); error != cudaSuccess) return error;
  return cudaSuccess;
}

// Where the chunks of each group begin and end, of tensors that are sorted by group; group -1 comes first.
template <typename Ref>
std::vector<int64_t> first_chunks(const std::vector<Ref>& sorted, int64_t num_groups) {
  std::vector<int64_t> first_chunk(num_groups + 1);
  for (const Ref& tensor : sorted) first_chunk[tensor.group + 1] += count_chunks(tensor.numel);
  for (int64_t g = 0; g < num_groups; ++g) first_chunk[g + 1] += first_chunk[g];
  return first_chunk;
}

// Calls launch(list) for the groups of tensors that are sorted by group.
template <typename Ref, typename Launch>
cudaError_t for_each_group_list(const std::vector<Ref>& sorted, int64_t num_groups, Launch launch) {
  const std::vector<int64_t> first_chunk = first_chunks(sorted, num_groups);
  constexpr int kFewGroups = 64, kManyGroups = 4000;  // 32,016 bytes of arguments
  return num_groups <= kFewGroups ? for_each_group_list<kFewGroups>(first_chunk, launch)
                                  : for_each_group_list<kManyGroups>(first_chunk, launch);
}

// And by dtype within a group, as a CompactList has them: sums are added in one order in every op.
template <typename Ref>
void sort_by_group(std::vector<Ref>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const Ref& a, const Ref& b) { return std::tie(a.group, a.dtype) < std::tie(b.group, b.dtype); });
}

}  // namespace modgrad
