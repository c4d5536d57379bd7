"""What calls cost in counts, at every shape of the suite: fewer ops than foreach, no host read."""

from functools import lru_cache

import pytest

from modgrad.bench import scaling
from modgrad.bench.case import kernels
from modgrad.bench.cost import cost
from modgrad.bench.suite import entries
from modgrad.bench.timing import interleaved

OURS = f"modgrad, {kernels('cpu')[0]}"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(OURS == "modgrad, reference", reason="the reference works tensor by tensor"),
]
ENTRIES = {entry.label: entry for entry in entries("cpu", quick=True)}
STEPS = [label for label in ENTRIES if label.startswith(("training step", "balancers"))]
OPS = [label for label in ENTRIES if label not in STEPS and "optimizer step" not in label]
# a longer tensor is no further op: counted up to a million elements
POINTS = {
    f"{axis} {value}, {number}": (axis, value, build)
    for number, (axis, value, build) in enumerate(scaling.points("cpu"))
    if axis != "parameters" or value <= 10**6
}


def counted(provider):
    """Of a third call: the first makes states and tables, the second retains lists."""
    provider()
    provider()
    return cost(provider, "cpu")


@lru_cache(maxsize=1)
def costs(label):
    case = ENTRIES[label].build()
    return {name: counted(p) for name, p in case.providers.items() if not name.endswith("compiled")}


def baseline(found):
    """Stock PyTorch with weights, without a host read."""
    return found.get("foreach, stock", next(iter(found.values())))


@pytest.mark.parametrize("label", OPS)
def test_ops_take_fewer_calls_than_foreach_and_read_nothing(label):
    found = costs(label)
    for name in (OURS, f"{OURS}, norms"):
        if name in found:
            assert found[name].dispatched_ops < baseline(found).dispatched_ops
            assert found[name].host_reads == 0
    assert all(c.host_reads == 0 for name, c in found.items() if name.startswith("modgrad"))


@pytest.mark.parametrize("label", POINTS)
def test_curves_take_fewer_calls_than_foreach_and_read_nothing(label):
    case = scaling.point(*POINTS[label], "cpu")
    first, ours = (counted(provider) for provider in case.providers.values())
    assert ours.dispatched_ops < first.dispatched_ops
    assert ours.host_reads == 0


@pytest.mark.parametrize("label", STEPS)
def test_steps_read_nothing_and_take_fewer_calls_than_foreach(label):
    found = costs(label)
    own = {n: c for n, c in found.items() if "loop" not in n and "TorchJD" not in n}
    assert {name: c.host_reads for name, c in own.items() if c.host_reads} == {}
    if "foreach" in found:
        steps = [c for name, c in found.items() if name.startswith("modgrad")]
        assert len(steps) >= 2
        assert all(c.dispatched_ops < found["foreach"].dispatched_ops for c in steps)
        loops = [c for name, c in found.items() if name.startswith("papers' loop")]
        assert loops
        assert all(c.host_reads > 0 for c in loops)


@pytest.mark.parametrize("op", ["group_sq_norms", "modulate_"])
def test_a_slowed_kernel_is_seen(op, monkeypatch):
    """Three more passes over the same memory: 89 MB, some milliseconds; equal kernels stay near 1.

    Where others have the cores, medians of pairs are off by a half.
    """
    from modgrad import ops

    case = ENTRIES[f"{op}, 2x resnet18"].build()
    case.check()
    quick = case.providers[OURS]
    backend = getattr(ops, OURS.removeprefix("modgrad, "))
    kernel = getattr(backend, op)

    def four_times(*arguments):
        for _ in range(3):
            kernel(*arguments)
        return kernel(*arguments)

    def slowed():
        with monkeypatch.context() as patch:
            patch.setattr(backend, op, four_times)
            quick()

    measured = interleaved({"as it is": quick, "again": quick, "slowed": slowed}, 1.0, least=15)
    assert measured["slowed"].ratio > 2
    assert 0.5 < measured["again"].ratio < 2
