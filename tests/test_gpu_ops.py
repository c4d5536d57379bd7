"""What only a GPU can show of every op: streams, graphs, launches, long lists, large tensors."""

import calls
import pytest
import torch
from calls import assert_same_bits, clones
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import modgrad
from modgrad.backends import native
from modgrad.bench.timing import waits_are_errors, warm_up

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

on_gpu = pytest.mark.parametrize("device", ["cuda"])
compiled = pytest.mark.parametrize("backend", ["native", "triton"])
each = pytest.mark.parametrize("name", calls.NAMES)

# Launches of one list of one dtype: at once, in parts (docs/kernels.md).
LAUNCHES = {
    "group_sq_norms": (2, 2),
    "group_gram": (2, 2),
    "combine_": (1, 1),
    "modulate_": (1, 1),
    "modulate_ with noise": (3, 3),
    "scale_backward": (1, 1),
    "modality_scores": (1, 2),
    "modality_cross_entropy": (2, 3),  # with its backward
    "balanced_cross_entropy": (2, 3),
    "rule_weights": (1, 1),
    "balance_": (1, 3),
    "balance_ of losses": (1, 4),
    "modulated_sgd_": (1, 1),
    "modulated_adamw_": (2, 2),
    "modulated_sgd_ by norms": (1, 3),
    "modulated_adamw_ by norms": (1, 4),
}


@on_gpu
@each
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in parts"])
def test_launches(device, name, at_once, monkeypatch):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", "1" if at_once else "0")
    call = calls.calls(device, "native")[name]
    inputs = clones(call.inputs)
    call.run(inputs)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        call.run(inputs)
        torch.cuda.synchronize()
    on_device = [e.name for e in recorded.events() if e.device_type == DeviceType.CUDA]
    own = [kernel for kernel in on_device if "modgrad" in kernel]
    assert len(own) == LAUNCHES[name][not at_once], own


@on_gpu
@each
def test_one_launch_or_its_parts_give_the_same_bits(device, name, monkeypatch):
    call = calls.calls(device, "native")[name]
    found = []
    for choice in "10":
        monkeypatch.setenv("MODGRAD_COOPERATIVE", choice)
        found.append(clones(call.run(clones(call.inputs))))
    assert_same_bits(*found)


@on_gpu
@compiled
@each
def test_the_host_waits_for_nothing(device, backend, name):
    call = calls.calls(device, backend)[name]
    call.run(clones(call.inputs))
    inputs = clones(call.inputs)
    with waits_are_errors():
        call.run(inputs)


@on_gpu
@compiled
@each
def test_an_op_follows_its_stream(device, backend, name):
    """Inputs that come late on a stream of their own: another stream would read NaN."""
    call = calls.calls(device, backend)[name]
    expected = clones(call.run(clones(call.inputs)))
    late = [torch.full_like(x, torch.nan if x.is_floating_point() else 0) for x in call.inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some 10 ms
        for x, y in zip(late, call.inputs, strict=True):
            x.copy_(y)
        found = call.run(late)
    stream.synchronize()
    assert_same_bits(found, expected)


@on_gpu
@each
def test_a_captured_op_replays_on_new_inputs(device, name):
    call = calls.calls(device, "native")[name]
    fixed = clones(call.inputs)
    warm_up(lambda: call.run(clones(call.inputs)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call.run(fixed)
    for factor in (1.5, 0.25):
        fresh = [x * factor if x.is_floating_point() else x for x in call.inputs]
        expected = call.run(clones(fresh))
        for x, y in zip(fixed, fresh, strict=True):
            x.copy_(y)
        graph.replay()
        assert_same_bits(out, expected)


@on_gpu
def test_triton_refuses_capture(device):
    call = calls.calls(device, "triton")["group_sq_norms"]
    call.run(call.inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device=device)  # torch warns of an empty graph
        with pytest.raises(RuntimeError, match="backend='native'"):
            call.run(call.inputs)


@on_gpu
@pytest.mark.parametrize("count", [64, 65, 430, 431, 512, 513, 880, 881, 1025, 3921, 10_000])
@pytest.mark.parametrize("choice", ["0", "1"])
def test_lists_longer_than_a_launch(device, count, choice, monkeypatch):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", choice)
    sizes = [1 + 37 * i % 200 for i in range(count)]
    grads = [torch.randn(n, device=device) for n in sizes]
    params, buffers = clones(grads), clones(grads)
    group = [i % 3 for i in range(count)]
    found = {}
    for backend in ("native", "reference"):
        balanced, stepped, momentum = clones(grads), clones(params), clones(buffers)
        weights = torch.empty(3, device=device)
        options = {"rule": calls.EQUAL, "backend": backend}
        gram, by_rule, _ = modgrad.balance_(balanced, group, 3, **options)
        modgrad.modulated_sgd_(
            *(stepped, grads, momentum, group, weights), lr=0.1, momentum=0.9, **options
        )
        found[backend] = [gram, by_rule, weights, *balanced, *stepped, *momentum]
    # Values below 8, whose float32 are 2^-21 apart at most: three roundings are 7e-7. Sums are of
    # float64.
    for a, b in zip(found["native"], found["reference"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert native.group_sq_norms(grads, group, 3).equal(found["native"][0].flatten())


@on_gpu
@compiled
def test_more_elements_than_an_int32_counts(device, backend):
    size = 2**31 + 5
    grads = [torch.ones(size, device=device, dtype=torch.bfloat16)]
    weights = torch.tensor([3.0], device=device)
    assert modgrad.group_sq_norms(grads, [0], 1, backend=backend).item() == size
    modgrad.modulate_(grads, [0], weights, backend=backend)
    params = [torch.zeros_like(grads[0])]
    modgrad.modulated_sgd_(params, grads, [], [0], weights, lr=0.5, backend=backend)
    for values, expected in ((grads[0], 3.0), (params[0], -4.5)):
        ends = values[:7], values[2**31 - 7 : 2**31 + 5]
        assert all((end == expected).all() for end in ends)
        assert values.sum(dtype=torch.float64).item() == expected * size
