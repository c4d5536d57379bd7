"""Lists for kernels that take all tensors in the arguments of one launch: every chunk is found."""

import numpy as np
import pytest

CHUNK = 16384


def chunks_of(tensors):
    """What a list has to find: address, begin, size and kind of every chunk."""
    return [
        (address, begin, min(CHUNK, numel - begin), 4 * group + dtype)
        for address, numel, group, dtype in tensors
        for begin in range(0, numel, CHUNK)
    ]


# A fourth of the tensors is empty; of the others 15, 16 and 17, 512 and 513 among them.
@pytest.mark.parametrize("count", [0, 1, 21, 22, 23, 300, 683, 684])
@pytest.mark.parametrize("unit", [2, 4, 512])
def test_compact_lists_find_every_chunk(formulas, unit, count):
    generator = np.random.default_rng(count)
    sizes = [0, 1, CHUNK, CHUNK + 1, 0, 5 * CHUNK - 1, 3, 2 * CHUNK]
    tensors = sorted(
        (
            (2**46 + unit * int(generator.integers(2**32)), sizes[i % 8], *map(int, kind))
            for i, kind in enumerate(generator.integers([8, 4], size=(count, 2)))
        ),
        key=lambda tensor: tensor[2:],
    )
    fits = sum(size > 0 for _, size, *_ in tensors) <= 512
    assert formulas.compact_chunks(tensors) == (chunks_of(tensors) if fits else None)


@pytest.mark.parametrize("group", [0, 7])
@pytest.mark.parametrize("dtype", range(4))
def test_compact_lists_of_one_kind(formulas, group, dtype):
    tensors = [(2**46 + 64 * i, 1 + i % 16, group, dtype) for i in range(40)]
    assert formulas.compact_chunks(tensors) == chunks_of(tensors)


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 512, 2**21])
def test_compact_lists_span_32_bits_of_their_unit(formulas, unit):
    """In units of the largest power of two that divides all distances."""
    lowest, most = 2**40 + 6, 2**32 - 1
    near, far = (lowest + unit, 3, 0, 0), (lowest + most * unit, 5, 1, 3)
    tensors = [(lowest, 1, 0, 0), near, far]
    assert formulas.compact_chunks(tensors) == chunks_of(tensors)
    beyond = (far[0] + unit, *far[1:])
    assert formulas.compact_chunks([*tensors[:2], beyond]) is None
    # without the tensor between, the unit is larger
    assert formulas.compact_chunks([tensors[0], beyond]) == chunks_of([tensors[0], beyond])


def test_compact_lists_pass_over_addresses_without_elements(formulas):
    tensors = [(0, 0, 0, 0), (2**46 + 4, 3, 0, 0), (7, 0, 1, 1), (2**46 + 8, 2, 2, 0)]
    assert formulas.compact_chunks(tensors) == chunks_of(tensors)
    assert formulas.compact_chunks([(0, 0, 0, 0)]) == []


def test_compact_lists_hold_sizes_of_32_bits(formulas):
    tensors = [(2**46, 2**32 - 1, 0, 2), (2**40, 9, 1, 0)]
    assert formulas.compact_chunks(tensors) == chunks_of(tensors)
    assert formulas.compact_chunks([(2**46, 2**32, 0, 2), tensors[1]]) is None


def chunks_of_losses(parameters):
    """What a list of losses has to find: every chunk, and where those of each kind begin."""
    by_kind = {}
    for address, numel, group, dtype, grads in parameters:
        if numel == 0:
            continue
        losses = sorted(grads)
        # in the list, -1 stands behind the last
        kind = group, [*losses, *[-1] * (4 - len(losses))], dtype
        places = [address, *(grads[k] for k in losses)]
        by_kind.setdefault(repr(kind), (kind, losses, []))[2].append((places, numel))
    chunks, first = [], [0]
    for (group, _, dtype), losses, tensors in sorted(by_kind.values(), key=lambda each: each[0]):
        for places, numel in tensors:
            for begin in range(0, numel, CHUNK):
                size = min(CHUNK, numel - begin)
                chunks.append((places, begin, size, group, dtype, losses))
        first.append(len(chunks))
    return chunks, first


def parameters_of(count, kinds, unit=2):
    """A fourth of them empty; gradients of up to 4 losses of 8."""
    generator = np.random.default_rng(count)

    def address():
        return 2**46 + unit * int(generator.integers(2**32))

    made = [
        (int(group), int(dtype), sorted(generator.permutation(8)[: i % 5].tolist()))
        for i, (group, dtype) in enumerate(generator.integers([8, 4], size=(kinds, 2)))
    ]
    sizes = [0, 1, CHUNK, CHUNK + 1, 0, 5 * CHUNK - 1, 3, 2 * CHUNK]
    for i in range(count):
        group, dtype, losses = made[generator.integers(kinds)]
        yield address(), sizes[i % 8], group, dtype, {k: address() for k in losses}


# Parameters with elements: 15, 16 and 17 among them.
@pytest.mark.parametrize("count", [0, 1, 20, 21, 22, 23, 100])
@pytest.mark.parametrize("unit", [2, 4, 512])
def test_lists_of_losses_find_every_chunk(formulas, unit, count):
    parameters = list(parameters_of(count, 20, unit))
    assert formulas.compact_losses(parameters) == chunks_of_losses(parameters)


def alike(count, losses):
    return [
        (2**40 + 64 * i, 1 + i % 9, 3, 1, {k: 2**40 + 2**30 + 64 * (8 * i + k) for k in losses})
        for i in range(count)
    ]


# 512 tensors, of which 256 are parameters at most.
@pytest.mark.parametrize(
    ("count", "losses", "fits"),
    [
        (256, [7], True),
        (257, [7], False),
        (257, [], False),
        (170, [2, 5], True),
        (171, [2, 5], False),
        (102, [0, 1, 3, 6], True),
        (103, [0, 1, 3, 6], False),
        (1, [0, 1, 2, 3, 4], False),
    ],
)
def test_lists_of_losses_hold(formulas, count, losses, fits):
    parameters = alike(count, losses)
    found = formulas.compact_losses(parameters)
    assert found == (chunks_of_losses(parameters) if fits else None)


@pytest.mark.parametrize("more", [0, 1])
def test_lists_of_losses_hold_32_kinds(formulas, more):
    parameters = [(2**40 + 2 * i, 1, i // 4, i % 4, {}) for i in range(32 + more)]
    found = formulas.compact_losses(parameters)
    assert found == (None if more else chunks_of_losses(parameters))


@pytest.mark.parametrize("more", [0, 1])
def test_lists_of_losses_span_the_gradients_too(formulas, more):
    parameters = [(2**40, 3, 0, 0, {1: 2**40 + 4}), (2**40 + 8, 3, 0, 0, {1: 2**40 + 2**34 - 4})]
    parameters += [(2**40 + 16, 3, 0, 0, {1: 2**40 + 2**34})] * more
    found = formulas.compact_losses(parameters)
    assert found == (None if more else chunks_of_losses(parameters))
