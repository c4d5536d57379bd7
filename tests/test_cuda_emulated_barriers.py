"""The tests of the CUDA sources can fail: a barrier that is missing is seen."""

import re

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


def norms(ops, grads):
    return ops.group_sq_norms(grads, [0] * len(grads), 1)


def gram(ops, grads):
    pairs = len(grads) // 2
    places = [[p for p in range(pairs) for _ in range(2)], [0, 1] * pairs]
    return ops.group_gram(grads, *places, [0] * pairs, 1, 2)


def balance(ops, grads):
    """In one group, whose last chunk is read first after the barrier of the grid; then in two,
    twice, so that what a block finds in its memory is not right by chance."""
    results = []
    for M, factor in ((1, 1.0), (2, 1.0), (2, 3.0)):
        group = [i % M for i in range(len(grads))]
        factors = [factor if m == M - 1 else 1.0 for m in group]
        changed = (torch.stack(grads) * torch.tensor(factors)[:, None]).unbind()
        arguments = changed, [], [], [], group, M, 1, "equal_norms", [1.0, 10.0], None, []
        results += [*ops.balance_(*arguments), *changed]
    return torch.cat([x.flatten() for x in results])


def balance_losses(ops, grads):
    """Of one modality and two losses, then of two and three; twice, with weights of their own."""
    results, pairs = [], len(grads) // 2
    for M, gamma in ((1, 1.5), (2, 1.5), (2, 3.0)):
        group = [p % M for p in range(pairs)]
        tensor = [p for p in range(pairs) for _ in range(2)]
        loss = [k for m in group for k in (0, m + 1)]
        out = [torch.empty_like(g) for g in grads[:pairs]]
        arguments = out, grads, tensor, loss, group, M, M + 1, "mmpareto", [gamma], None, []
        results += [*ops.balance_(*arguments), *out]
    return torch.cat([x.flatten() for x in results])


def batches(grads):
    """Logits and classes: twice, what belongs to the first in other places; and of one row a warp,
    so that nothing but the barrier of the grid is between a row and the first sum."""
    for B, some in ((20, grads), (20, grads[::-1]), (4, grads[:2])):
        yield [g[: 5 * B].view(B, 5) for g in some], torch.arange(B) % 5


def entropies(ops, grads):
    given = None, -100, 0.0, "ogm", [0.5, 0.0], 0
    found = [ops.modality_cross_entropy(*batch, *given) for batch in batches(grads)]
    return torch.cat([weights for *_, weights in found])


def scores(ops, grads):
    return torch.cat([ops.modality_scores(*batch) for batch in batches(grads)])


def updates(grads, run):
    """Two groups, twice; the weight of each tensor is another than its neighbour's."""
    results, group = [], [i % 2 for i in range(len(grads))]
    for factor in (1.0, 3.0):
        given = [g * factor if m else g for g, m in zip(grads, group, strict=True)]
        params, weights = [torch.ones_like(g) for g in grads], torch.full((2,), torch.nan)
        run(params, given, group, weights, {"rule": "equal_norms", "parameters": [1.0, 10.0]})
        results += [weights, *params]
    return torch.cat([x.flatten() for x in results])


def sgd(ops, grads):
    def run(params, given, group, weights, rule):
        numbers = 0.1, 0.0, 0.0, 0.0, False, False, False
        ops.modulated_sgd_(params, given, [], group, weights, *numbers, **rule)

    return updates(grads, run)


def adam(ops, grads):
    """The step of each tensor, too, is another than its neighbour's."""

    def run(params, given, group, weights, rule):
        first, second = ([torch.ones_like(g) for g in grads] for _ in range(2))
        steps = [torch.tensor(float(i)) for i in range(len(grads))]
        states, numbers = (first, second, [], steps), (0.1, 0.9, 0.99, 1e-8, 0.0, False, False)
        ops.modulated_adam_(params, given, *states, group, weights, *numbers, **rule)

    return updates(grads, run)


# An op that comes by each barrier of a file.
BARRIERS = {
    "balance_.cu": balance,
    "balance_losses.cu": balance_losses,
    "deciding.cuh": balance,
    "elements.cuh": norms,
    "modality_cross_entropy.cu": entropies,
    "modality_scores.cu": scores,
    "modulated_adam_.cu": adam,
    "products.cuh": gram,
    "update_at_once.cuh": sgd,
}


def barriers(emulator, file, kind=r"sync(threads|_grid)\("):
    """The lines of the barriers in a file as it was compiled."""
    lines = (emulator.sources / file).read_text().splitlines()
    return [i for i, line in enumerate(lines, 1) if re.search(kind, line)]


def test_every_file_with_a_barrier_has_a_row(emulator):
    files = [path.name for path in emulator.sources.iterdir()]
    assert {file for file in files if barriers(emulator, file)} == set(BARRIERS)


@pytest.mark.parametrize("file", BARRIERS)
def test_a_missing_barrier_is_seen(emulator, file):
    """Without any one of them some schedule goes wrong: these tests can fail."""
    grads = [torch.randn(16385) for _ in range(16)]
    expected = BARRIERS[file](emulator.ops, grads)

    def goes_wrong(seed):
        emulator.seed(seed)
        return not torch.equal(BARRIERS[file](emulator.ops, grads), expected)

    for line in barriers(emulator, file):
        with emulator.without_barrier(line, threads=1024):
            assert any(goes_wrong(seed) for seed in range(10))
    assert not any(goes_wrong(seed) for seed in range(10))


@pytest.mark.parametrize("file", BARRIERS)
def test_a_barrier_that_some_threads_pass_by_is_seen(emulator, file):
    grads = [torch.randn(100) for _ in range(2)]
    expected = BARRIERS[file](emulator.ops, grads)
    for line in barriers(emulator, file):
        with (
            emulator.without_barrier(line, threads=32),
            pytest.raises(RuntimeError, match="a barrier or shuffle that some threads never reach"),
        ):
            BARRIERS[file](emulator.ops, grads)
    # a failed launch leaves nothing behind
    assert torch.equal(BARRIERS[file](emulator.ops, grads), expected)


@pytest.mark.parametrize("file", ["balance_.cu", "balance_losses.cu", "update_at_once.cuh"])
def test_a_block_that_passes_the_barrier_of_the_grid_is_seen(emulator, file):
    lines = barriers(emulator, file, r"sync_grid\(")
    assert lines
    for line in lines:
        with (
            emulator.without_barrier(line, threads=256),
            pytest.raises(RuntimeError, match="that some threads never reach"),
        ):
            BARRIERS[file](emulator.ops, [torch.randn(100) for _ in range(4)])
