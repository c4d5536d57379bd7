// Launcher of group_gram, and the tiles of products that it takes.
#pragma once

#include <array>
#include <tuple>

#include "../same_losses.h"
#include "tensor_list.cuh"

namespace modgrad {

// Up to 4 gradients of a parameter, the rows, and up to 4 that come after them, the columns; without columns
// the products of the rows with themselves. A loss that is not there is -1.
struct Tile {
  std::array<int32_t, 2 * kTile> loss;  // of rows; from kTile on of columns or, without them, of rows again
  std::array<const void*, 2 * kTile> in;
  int64_t numel;
  int32_t group, rows, columns;
  Dtype dtype;
};

// Without columns first; of these and of those with columns, all of the same group, losses and dtype side by side, so
// that their partial sums are.
inline std::vector<Tile> make_tiles(const LossRefs& refs) {
  std::vector<Tile> tiles;
  for (size_t p = 0; p + 1 < refs.first.size(); ++p) {
    const int64_t end = refs.first[p + 1];
    for (int64_t row = refs.first[p]; row < end && refs.grads[row].numel > 0; row += kTile)
      for (int64_t column = row; column < end; column += kTile) {
        const TensorRef& grad = refs.grads[row];
        Tile tile = {{}, {}, grad.numel, grad.group, 0, 0, grad.dtype};
        tile.loss.fill(-1);
        tile.rows = static_cast<int32_t>(std::min<int64_t>(kTile, end - row));
        const int width = static_cast<int>(std::min<int64_t>(kTile, end - column));
        if (column > row) tile.columns = width;
        for (int i = 0; i < tile.rows; ++i) {
          tile.loss[i] = refs.loss[row + i];
          tile.in[i] = refs.grads[row + i].in;
        }
        for (int i = 0; i < width; ++i) {
          tile.loss[kTile + i] = refs.loss[column + i];
          tile.in[kTile + i] = refs.grads[column + i].in;
        }
        tiles.push_back(tile);
      }
  }
  std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) {
    if ((a.columns > 0) != (b.columns > 0)) return b.columns > 0;
    return std::tie(a.group, a.loss, a.dtype) < std::tie(b.group, b.loss, b.dtype);
  });
  return tiles;
}

cudaError_t launch_group_gram(const std::vector<Tile>& tiles,  // as make_tiles makes them
                              int64_t num_groups, int64_t num_losses,
                              double* partial,  // [kSlots, count_chunks(tiles)], scratch
                              double* gram,     // [num_groups, num_losses, num_losses]
                              cudaStream_t stream);

}  // namespace modgrad
