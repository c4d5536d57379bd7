// out = sum over losses of w g, in one pass over all parameters, rounded once.
#include "combine_.cuh"
#include "elements.cuh"

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

// sum + w x with both steps rounded, as the reference does it: no fused multiply-add.
__device__ __forceinline__ float add_scaled(float sum, float x, float w) {
  return __fadd_rn(sum, __fmul_rn(x, w));
}
__device__ __forceinline__ double add_scaled(double sum, double x, double w) {
  return __dadd_rn(sum, __dmul_rn(x, w));
}

// The gradients of one parameter, from the first element of a chunk on.
template <typename T, int kCapacity>
struct Inputs {
  const CombineList<kCapacity>& list;
  const float* weights;  // of the parameter's group
  int first, end;
  int64_t begin;

  __device__ __forceinline__ const T* in(int g) const { return static_cast<const T*>(list.in[g]) + begin; }
  __device__ __forceinline__ wide_t<T> weight(int g) const { return weights[list.loss[g]]; }
};

// kPacks packs of the thread, kThreads apart, from element i on.
template <int kPacks, typename T, int kCapacity>
__device__ __forceinline__ void combine_packs(const Inputs<T, kCapacity>& inputs, T* out, int64_t i) {
  constexpr int kSize = Pack<T>::kSize;
  wide_t<T> sum[kPacks][kSize] = {};
#pragma unroll 1
  for (int g = inputs.first; g < inputs.end; ++g) {
    const T* x = inputs.in(g) + i;
    const wide_t<T> w = inputs.weight(g);
    Pack<T> packs[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) packs[u] = load_pack(x + u * kThreads * kSize);
#pragma unroll
    for (int u = 0; u < kPacks; ++u)
#pragma unroll
      for (int e = 0; e < kSize; ++e) sum[u][e] = add_scaled(sum[u][e], widen(packs[u].x[e]), w);
  }
#pragma unroll
  for (int u = 0; u < kPacks; ++u) {
    Pack<T> pack;
#pragma unroll
    for (int e = 0; e < kSize; ++e) narrow(sum[u][e], pack.x[e]);
    store_pack(out + i + u * kThreads * kSize, pack);
  }
}

// The thread's share of elements [begin, begin + n) of parameter t.
template <typename T, int kCapacity>
__device__ __forceinline__ void combine(const CombineList<kCapacity>& list, int t, int64_t begin, int64_t n,
                                        const float* weights) {
  constexpr int kSize = Pack<T>::kSize;
  const int thread = static_cast<int>(threadIdx.x);
  const Inputs<T, kCapacity> inputs = {list, weights, list.first_grad[t], list.first_grad[t + 1], begin};
  const bool resumes = list.resumes[t], waits = list.waits[t];
  T* out = static_cast<T*>(list.out[t]) + begin;
  bool alike = !resumes && !waits;
  for (int g = inputs.first; g < inputs.end; ++g)
    alike = alike && reinterpret_cast<uintptr_t>(inputs.in(g)) % 16 == reinterpret_cast<uintptr_t>(out) % 16;
  const Split s = alike ? split(out, n) : Split{0, 0, n};
  int64_t i = thread;
#pragma unroll 1
  for (; i + (kInFlight - 1) * kThreads < s.packs; i += kInFlight * kThreads)
    combine_packs<kInFlight>(inputs, out, s.head + i * kSize);
#pragma unroll 1
  for (; i < s.packs; i += kThreads) combine_packs<1>(inputs, out, s.head + i * kSize);
  wide_t<T>* wide = static_cast<wide_t<T>*>(list.wide[t]);
#pragma unroll 4
  for (int64_t r = thread; r < s.head + s.tail; r += kThreads) {
    const int64_t e = r < s.head ? r : r + s.packs * kSize;
    wide_t<T> sum = resumes ? wide[begin + e] : wide_t<T>{0};
#pragma unroll 1
    for (int g = inputs.first; g < inputs.end; ++g)
      sum = add_scaled(sum, widen(inputs.in(g)[e]), inputs.weight(g));
    if (waits)
      wide[begin + e] = sum;
    else
      narrow(sum, out[e]);
  }
}

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
    with_type(list.dtype[t], [&](auto type) {
      combine<decltype(type)>(list, t, begin, n, weights + list.group[t] * num_losses);
    });
  }
}

// As many launches as it takes, each of kCapacity parameters and gradients at most.
template <int kCapacity>
cudaError_t combine(const std::vector<TensorRef>& out, const LossRefs& refs, const float* weights,
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
             ? combine<kFew>(out, refs, weights, num_losses, stream)
             : combine<kMostGrads>(out, refs, weights, num_losses, stream);
}

}  // namespace modgrad
