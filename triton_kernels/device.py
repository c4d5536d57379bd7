"""What the kernels share on the device: chunks of memory read, written, scaled and summed.

Addresses are int64, read from a table, so that one launch serves a whole list of tensors.
"""
# mypy: allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def element(
    addresses: tl.tensor, tensor: tl.tensor, index: tl.tensor, DTYPE: tl.constexpr
) -> tl.tensor:
    """The address of element ``index`` of a tensor."""
    return tl.load(addresses + tensor) + index * (DTYPE.primitive_bitwidth // 8)


@triton.jit
def widen(values: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """The values as they are computed with: float64 for float64, else float32."""
    # bfloat16 goes by its bits, here and in `narrow`: triton's interpreter truncates what the
    # device rounds and loses subnormals, and so the CPU tests the code that the GPU runs
    if DTYPE.is_bf16():
        bits = values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        wide = bits.to(tl.float32, bitcast=True)
    elif DTYPE.is_fp64():
        wide = values
    else:
        wide = values.to(tl.float32)
    return wide


@triton.jit
def narrow(values: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """The values rounded to DTYPE, to nearest even."""
    if DTYPE.is_bf16():
        bits = values.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(values == values, bits, 0x7FC0)
        rounded = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = values.to(DTYPE)
    return rounded


@triton.jit
def load_chunk(
    address: tl.tensor,
    count: tl.tensor,
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
    OTHER: tl.constexpr = 0.0,
) -> tl.tensor:
    """x[0 : CHUNK], and OTHER from ``count`` on, widened."""
    x = address.to(tl.pointer_type(DTYPE))
    lanes = tl.arange(0, CHUNK)
    # 16 bytes a load need both a known alignment and no mask; a view at an odd offset has neither
    if (address % 16 == 0) & (count >= CHUNK):
        values = tl.load(tl.multiple_of(x, 16) + lanes)
    else:
        values = tl.load(x + lanes, mask=lanes < count, other=OTHER)
    return widen(values, DTYPE)


@triton.jit
def store_chunk(
    address: tl.tensor,
    values: tl.tensor,
    count: tl.tensor,
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """x[0 : count] <- values, rounded to DTYPE."""
    x = address.to(tl.pointer_type(DTYPE))
    lanes = tl.arange(0, CHUNK)
    rounded = narrow(values, DTYPE)
    if (address % 16 == 0) & (count >= CHUNK):
        tl.store(tl.multiple_of(x, 16) + lanes, rounded)
    else:
        tl.store(x + lanes, rounded, mask=lanes < count)


@triton.jit
def sum_range(x: tl.tensor, ranges: tl.tensor, index: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Sum of the float64 x[first : end], (first, end) = ranges[index], in a fixed order."""
    first = tl.load(ranges + 2 * index)
    end = tl.load(ranges + 2 * index + 1)
    total = tl.zeros((BLOCK,), tl.float64)
    # not `range`: with numpy 2.4 the interpreter of triton 3.6 takes no bounds read from memory
    while first < end:
        lanes = first + tl.arange(0, BLOCK)
        total += tl.load(x + lanes, mask=lanes < end, other=0.0)
        first += BLOCK
    return tl.sum(total, 0)


@triton.jit
def sum_ranges(
    x: tl.tensor, ranges: tl.tensor, num: tl.tensor, ROWS: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """``sum_range`` of the first ``num`` ranges, side by side: [ROWS], 0 from ``num`` on."""
    row = tl.arange(0, ROWS)
    first = tl.load(ranges + 2 * row, mask=row < num, other=0)
    end = tl.load(ranges + 2 * row + 1, mask=row < num, other=0)
    longest = tl.max(end - first, 0)
    total = tl.zeros((ROWS, BLOCK), tl.float64)
    done = tl.zeros((), tl.int64)
    while done < longest:
        lanes = (first + done)[:, None] + tl.arange(0, BLOCK)[None, :]
        total += tl.load(x + lanes, mask=lanes < end[:, None], other=0.0)
        done += BLOCK
    return tl.sum(total, 1)
