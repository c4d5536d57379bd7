"""Where each program of a launch works: tables built on the host and kept on the device.

Only the addresses are new in every step; the rest depends on sizes and dtypes and is cached.
"""
# mypy: allow-untyped-decorators

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 4096  # elements a program: 16 a thread, in 4 loads of 16 bytes for float32

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
# without fusion a product is rounded before it is added to, as in the definition of the ops
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}
# where a program holds two chunks: 31 to 52 registers on sm_90, 58 to 136 with 16 elements a thread
TWO_CHUNK_OPTIONS = {**OPTIONS, "num_warps": 16}

# For a program a row of logits: 8 classes a thread, loads of 16 bytes for 16-bit logits too.
BLOCK = 1024
ROW_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}

# a dtype, or those of a tensor and of what stands beside it
Kind = torch.dtype | tuple[torch.dtype, ...]
Launches = tuple[tuple[Any, Tensor], ...]  # the rows of each kind: one launch each


class ChunkTable(NamedTuple):
    """The chunks of a tensor list, ordered by group, tensor and place; all int64."""

    launches: Launches  # [chunks, 5]: tensor, first element, count, group, slot among all chunks
    groups: Tensor  # [G, 2]: first and end slot of each group
    tensors: Tensor  # [P, 2]: first and end slot of each tensor
    sizes: Tensor  # [P]
    num_chunks: int


@triton.jit
def read_row(rows: tl.tensor) -> tuple[tl.tensor, ...]:
    """This program's tensor, first element, count, group and slot."""
    row = rows + tl.program_id(0).to(tl.int64) * 5
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


def upload(values: Sequence[int] | NDArray[np.int64], device: torch.device) -> Tensor:
    """The values on the device, by a copy that the host does not wait for."""
    pinned = device.type == "cuda"
    if pinned and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the triton backend cannot be captured in a CUDA graph, whose replays would copy from"
            " host memory that is no longer kept; capture with backend='native'"
        )
    host = torch.as_tensor(values, dtype=torch.int64, device="cpu")
    if pinned:  # torch.tensor(pin_memory=True) takes no numpy array
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def address_table(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [P]: where each tensor lies in memory."""
    return upload([t.data_ptr() for t in tensors], tensors[0].device)


def address_grid(
    tensors: Sequence[Tensor], row: Sequence[int], column: Sequence[int], rows: int, columns: int
) -> Tensor:
    """int64 [rows, columns]: where tensors[i] lies, at (row[i], column[i]); 0 where none does."""
    grid = np.zeros((rows, columns), dtype=np.int64)
    grid[row, column] = [t.data_ptr() for t in tensors]
    return upload(grid, tensors[0].device)


def stream_id(device: torch.device) -> int:
    """Part of the caches' keys: on another stream a table could be read before it is copied."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def by_dtype(dtypes: Sequence[Kind], rows: NDArray[np.int64], device: torch.device) -> Launches:
    """The rows of the tensors of each kind; column 0 is the tensor."""
    found = list(dict.fromkeys(dtypes))
    kind = np.array([found.index(d) for d in dtypes])[rows[:, 0]]
    picked = ((_of_triton(dtype), rows[kind == i]) for i, dtype in enumerate(found))
    return tuple((dtype, upload(r, device)) for dtype, r in picked if len(r) > 0)


def _of_triton(kind: Kind) -> Any:
    return tuple(map(DTYPES.get, kind)) if isinstance(kind, tuple) else DTYPES[kind]


def chunk_table(
    tensors: Sequence[Tensor],
    group: Sequence[int],
    num_groups: int,
    beside: Sequence[Tensor] | None = None,
) -> ChunkTable:
    """Group -1 is in no range of ``groups``. With ``beside``, launches are by pairs of dtypes."""
    device = tensors[0].device
    sizes = tuple(t.numel() for t in tensors)
    kinds: tuple[Kind, ...] = tuple(t.dtype for t in tensors)
    if beside is not None:
        kinds = tuple((t.dtype, b.dtype) for t, b in zip(tensors, beside, strict=True))
    return _chunk_table(sizes, kinds, tuple(group), num_groups, device, stream_id(device))


@lru_cache(maxsize=64)
def _chunk_table(
    sizes: tuple[int, ...],
    dtypes: tuple[Kind, ...],
    group: tuple[int, ...],
    num_groups: int,
    device: torch.device,
    stream: int,
) -> ChunkTable:
    size, of_group = np.array(sizes, dtype=np.int64), np.array(group, dtype=np.int64)
    chunks = -(-size // CHUNK)
    order = np.argsort(of_group, kind="stable")
    ends = np.empty_like(size)
    ends[order] = np.cumsum(chunks[order])
    tensor = np.repeat(order, chunks[order])
    slot = np.arange(len(tensor))
    first = (slot - (ends - chunks)[tensor]) * CHUNK
    count = np.minimum(size[tensor] - first, CHUNK)
    rows = np.stack([tensor, first, count, of_group[tensor], slot], axis=1)
    bounds = np.searchsorted(of_group[tensor], np.arange(num_groups + 1))
    return ChunkTable(
        by_dtype(dtypes, rows, device),
        upload(np.stack([bounds[:-1], bounds[1:]], axis=1), device),
        upload(np.stack([ends - chunks, ends], axis=1), device),
        upload(size, device),
        len(rows),
    )


def side_by_side(num_sums: int, size: int) -> tuple[int, int]:
    """ROWS and BLOCK of a tile of that size, in which one program adds up so many sums."""
    rows = triton.next_power_of_2(num_sums)
    return rows, max(size // rows, 1)


class RowTable(NamedTuple):
    """The logits of a batch, of which a program takes a row; all int64."""

    launches: Launches  # [logits, 3]: place in the list, classes, slot of its loss's first row
    slots: Tensor  # [logits, 2]: first and end slot


def row_table(logits: Sequence[Tensor], loss: Sequence[int]) -> RowTable:
    """logits[i] [B, C_i] are those of loss[i]."""
    B, device = len(logits[0]), logits[0].device
    num_classes = tuple(x.shape[1] for x in logits)
    dtypes = tuple(x.dtype for x in logits)
    return _row_table(B, num_classes, dtypes, tuple(loss), device, stream_id(device))


@lru_cache(maxsize=64)
def _row_table(
    num_rows: int,
    num_classes: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    loss: tuple[int, ...],
    device: torch.device,
    stream: int,
) -> RowTable:
    first = np.array(loss, dtype=np.int64) * num_rows
    rows = np.stack([np.arange(len(loss)), np.array(num_classes), first], axis=1)
    slots = np.stack([first, first + num_rows], axis=1)
    return RowTable(by_dtype(dtypes, rows, device), upload(slots, device))
