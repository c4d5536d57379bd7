// Inner products of the gradients of several losses per group. The products of a parameter are cut into tiles
// of 4 by 4 losses: one partial sum a tile, chunk and pair, then one block a group and pair adds them in a
// fixed order. A parameter that 4 losses or fewer reach is one tile, and its gradients are read once.
#include "group_gram.cuh"
#include "product_sums.cuh"
#include "products.cuh"

namespace modgrad {
namespace {

// Part of the tiles. The gradients of tile i are in[first_grad[i]] and those after it: rows, then columns.
template <int kCapacity>
struct TileList {
  const void* in[kCapacity];
  int64_t numel[kCapacity];
  int64_t first_chunk[kCapacity + 1];  // counted over all tiles
  int32_t first_grad[kCapacity];
  int32_t size;
  uint8_t rows[kCapacity], columns[kCapacity];
  Dtype dtype[kCapacity];
};

// partial: [slot, chunk]
template <bool kCross, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    group_gram_kernel(const __grid_constant__ TileList<kCapacity> list, int64_t num_chunks, double* partial) {
  __shared__ double warps[kSlots][kWarps];
  const int64_t end = list.first_chunk[list.size];
  for (int64_t c = list.first_chunk[0] + blockIdx.x; c < end; c += gridDim.x) {
    const int t = find_tensor(list.first_chunk, list.size, c);
    const int64_t begin = (c - list.first_chunk[t]) * kChunkElements, left = list.numel[t] - begin;
    const int64_t n = left < kChunkElements ? left : kChunkElements;
    const void* const* in = list.in + list.first_grad[t];
    multiply_tile<kCross>(list.dtype[t], in, list.rows[t], list.columns[t], begin, n, warps, partial + c, num_chunks);
  }
}

template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    add_products_kernel(const __grid_constant__ SameLossesList<kCapacity> list, bool first,
                        int64_t num_groups, int64_t num_losses, int64_t num_chunks, const double* partial,
                        double* gram) {
  add_products(list, first, num_groups, num_losses, num_chunks, partial, gram);
}

template <bool kCross, int kCapacity>
cudaError_t multiply_tiles(const Tile* tile, const Tile* end, int64_t num_chunks, int64_t& first_chunk,
                           double* partial, cudaStream_t stream) {
  while (tile != end) {
    TileList<kCapacity> list;
    list.first_chunk[0] = first_chunk;
    list.size = 0;
    for (int grads = 0; tile != end && grads + tile->rows + tile->columns <= kCapacity; ++tile) {
      const int i = list.size++;
      list.first_grad[i] = grads;
      std::copy_n(tile->in.begin(), tile->rows, list.in + grads);
      std::copy_n(tile->in.begin() + kTile, tile->columns, list.in + grads + tile->rows);
      grads += tile->rows + tile->columns;
      list.numel[i] = tile->numel;
      list.first_chunk[i + 1] = list.first_chunk[i] + count_chunks(tile->numel);
      list.rows[i] = static_cast<uint8_t>(tile->rows);
      list.columns[i] = static_cast<uint8_t>(tile->columns);
      list.dtype[i] = tile->dtype;
    }
    const unsigned blocks = num_blocks(list.first_chunk[list.size] - first_chunk);
    group_gram_kernel<kCross><<<blocks, kThreads, 0, stream>>>(list, num_chunks, partial);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    first_chunk = list.first_chunk[list.size];
  }
  return cudaSuccess;
}

template <bool kCross>
cudaError_t multiply_tiles(const Tile* begin, const Tile* end, int64_t num_chunks, int64_t& first_chunk,
                           double* partial, cudaStream_t stream) {
  int64_t grads = 0;
  for (const Tile* tile = begin; tile != end; ++tile) grads += tile->rows + tile->columns;
  constexpr int kFew = 64, kMany = 1024;
  static_assert(sizeof(TileList<kMany>) + 128 <= 32764, "list and further arguments pass the limit");
  return grads <= kFew ? multiply_tiles<kCross, kFew>(begin, end, num_chunks, first_chunk, partial, stream)
                       : multiply_tiles<kCross, kMany>(begin, end, num_chunks, first_chunk, partial, stream);
}

bool same_losses(const Tile& a, const Tile& b) {
  return a.group == b.group && a.loss == b.loss && a.dtype == b.dtype;
}

template <int kCapacity>
cudaError_t add_products(const std::vector<Tile>& tiles, int64_t num_groups, int64_t num_losses,
                         int64_t num_chunks, const double* partial, double* gram, cudaStream_t stream) {
  int64_t chunk = 0;
  size_t t = 0;
  bool first = true;
  do {
    SameLossesList<kCapacity> list;
    list.size = 0;
    list.first_chunk[0] = chunk;
    for (; t < tiles.size(); ++t) {
      if (list.size == 0 || !same_losses(tiles[t], tiles[t - 1])) {
        if (list.size == kCapacity) break;
        list.group[list.size] = tiles[t].group;
        std::copy(tiles[t].loss.begin(), tiles[t].loss.end(), list.loss[list.size++]);
      }
      chunk += count_chunks(tiles[t].numel);
      list.first_chunk[list.size] = chunk;
    }
    const unsigned blocks = num_blocks(num_groups * num_losses * num_losses);
    if (blocks == 0) return cudaSuccess;
    add_products_kernel<<<blocks, kThreads, 0, stream>>>(list, first, num_groups, num_losses, num_chunks,
                                                         partial, gram);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    first = false;
  } while (t < tiles.size());
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_group_gram(const std::vector<Tile>& tiles, int64_t num_groups, int64_t num_losses,
                              double* partial, double* gram, cudaStream_t stream) {
  const int64_t num_chunks = count_chunks(tiles);
  const Tile *begin = tiles.data(), *end = begin + tiles.size();
  const Tile* cross = std::find_if(begin, end, [](const Tile& tile) { return tile.columns > 0; });
  int64_t first_chunk = 0;
  cudaError_t error = multiply_tiles<false>(begin, cross, num_chunks, first_chunk, partial, stream);
  if (error == cudaSuccess)
    error = multiply_tiles<true>(cross, end, num_chunks, first_chunk, partial, stream);
  if (error != cudaSuccess) return error;
  constexpr int kFew = 32, kMany = 720;
  static_assert(sizeof(SameLossesList<kMany>) + 128 <= 32764, "list and further arguments pass the limit");
  return tiles.size() <= kFew
             ? add_products<kFew>(tiles, num_groups, num_losses, num_chunks, partial, gram, stream)
             : add_products<kMany>(tiles, num_groups, num_losses, num_chunks, partial, gram, stream);
}

}  // namespace modgrad
