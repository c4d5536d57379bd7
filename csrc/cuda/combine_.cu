// out = sum over losses of w g, in one pass over all parameters, rounded once.
#include "combine_.cuh"
#include "combining.cuh"

namespace modgrad {
namespace {

// Parameters, and the gradients of parameter t: [first_grad[t], first_grad[t + 1]).
template <int kCapacity>
struct CombineList {
  void* out[kCapacity];
  void* wide[kCapacity];  // where the sum waits between two launches
  int64_t numel[kCapacity];
  int64_t first_chunk[kCapacity + 1];
  const void* in[kCapacity];
  int32_t loss[kCapacity];
  int32_t group[kCapacity];
  int32_t first_grad[kCapacity + 1];
  int32_t size;
  Dtype dtype[kCapacity];
  bool resumes[kCapacity], waits[kCapacity];  // the sum begins in `wide`, ends there
};
static_assert(sizeof(CombineList<kMostGrads>) + 128 <= 32764, "list and further arguments pass the limit");

// The gradients of one parameter, from the first element of a chunk on.
template <int kCapacity>
struct Inputs {
  const CombineList<kCapacity>& list;
  const float* weights;  // of the parameter's group
  int64_t begin;
  int first, count;

  template <typename T>
  __device__ __forceinline__ const T* in(int g) const {
    return static_cast<const T*>(list.in[first + g]) + begin;
  }
  __device__ __forceinline__ float weight(int g) const { return weights[list.loss[first + g]]; }
};

// Four blocks: 64 registers. Left alone, ptxas takes 80 on sm_80 and sm_90.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads, 4)
    combine_kernel(const __grid_constant__ CombineList<kCapacity> list, const float* weights,
                   int64_t num_losses) {
  const int64_t end = list.first_chunk[list.size];
  for (int64_t c = blockIdx.x; c < end; c += gridDim.x) {
    const int t = find_tensor(list.first_chunk, list.size, c);
    const int64_t begin = c * kChunkElements - list.first_chunk[t] * kChunkElements;
    const int64_t left = list.numel[t] - begin, n = left < kChunkElements ? left : kChunkElements;
    const int first = list.first_grad[t];
    const Inputs<kCapacity> inputs = {list, weights + list.group[t] * num_losses, begin, first,
                                      list.first_grad[t + 1] - first};
    with_type(list.dtype[t], [&](auto type) {
      using T = decltype(type);
      combine(inputs, static_cast<T*>(list.out[t]) + begin, n, static_cast<wide_t<T>*>(list.wide[t]) + begin,
              list.resumes[t], list.waits[t]);
    });
  }
}

// As many launches as it takes, each of kCapacity parameters and gradients at most.
template <int kCapacity>
cudaError_t launch(const std::vector<TensorRef>& out, const LossRefs& refs, const float* weights,
                    int64_t num_losses, cudaStream_t stream) {
  size_t p = 0;
  int64_t grad = 0;  // the next one of parameter p
  while (p < out.size()) {
    CombineList<kCapacity> list;
    list.size = 0;
    list.first_chunk[0] = list.first_grad[0] = 0;
    for (int grads = 0; p < out.size() && list.size < kCapacity; ++p) {
      const int64_t left = refs.first[p + 1] - grad;
      if (grads > 0 && grads + left > kCapacity) break;
      const int i = list.size++, count = static_cast<int>(std::min<int64_t>(left, kCapacity));
      list.out[i] = out[p].out;
      list.wide[i] = const_cast<void*>(out[p].in);
      list.numel[i] = out[p].numel;
      list.first_chunk[i + 1] = list.first_chunk[i] + count_chunks(out[p].numel);
      list.group[i] = out[p].group;
      list.dtype[i] = out[p].dtype;
      list.resumes[i] = grad > refs.first[p];
      list.waits[i] = count < left;
      for (const int64_t last = grad + count; grad < last; ++grad, ++grads) {
        list.in[grads] = refs.grads[grad].in;
        list.loss[grads] = refs.loss[grad];
      }
      list.first_grad[i + 1] = grads;
      if (list.waits[i]) break;  // the rest of this parameter is for the next launch
    }
    if (list.first_chunk[list.size] == 0) continue;
    const unsigned blocks = num_blocks(list.first_chunk[list.size]);
    combine_kernel<<<blocks, kThreads, 0, stream>>>(list, weights, num_losses);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_combine_(const std::vector<TensorRef>& out, const LossRefs& refs, const float* weights,
                            int64_t num_losses, cudaStream_t stream) {
  constexpr size_t kFew = 64;
  return std::max(out.size(), refs.grads.size()) <= kFew
             ? launch<kFew>(out, refs, weights, num_losses, stream)
             : launch<kMostGrads>(out, refs, weights, num_losses, stream);
}

}  // namespace modgrad
