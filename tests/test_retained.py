"""Lists of tensors that an update takes as one argument: the same step, and nothing goes stale."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import networks
import pytest
import torch
import updates
from conftest import usable
from dispatched import Ops
from fused import TWO, AdamW, pair, train
from torch.testing._internal.two_tensor import TwoTensor

import modgrad
from modgrad import RetainedList

native = torch.ops.modgrad_native
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")
NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _needs_native(device):
    usable("native", device)


def adam(device, amsgrad=False, dtype=torch.float32):
    return updates.adam("native", device, dtype, amsgrad=amsgrad)


def step(lists, device, **options):
    params, grads, first, second, largest, steps = lists
    weights = torch.tensor(updates.WEIGHTS, device=device)
    group = updates.groups(len(params))
    modgrad.modulated_adamw_(
        *(params, grads, first, second, steps, group, weights),
        **dict(lr=0.1, max_exp_avg_sqs=largest, backend="native") | options,
    )


def clone(lists):
    return [[t.clone() for t in tensors] for tensors in lists]


def retained(lists):
    """All but the gradients."""
    return [RetainedList(x) if i != 1 else x for i, x in enumerate(lists)]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(list(a), list(b), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_does_the_same(device, amsgrad, dtype):
    plain = adam(device, amsgrad, dtype)
    kept = retained(clone(plain))
    names = []
    for _ in range(3):
        step(plain, device)
        with Ops() as ops:
            step(kept, device)
        names.append([n.split("::")[1] for n in ops.names if n.startswith("modgrad_")])
    # one that is handed over once is not worth it
    assert names[0] == ["modulated_adam_"]
    assert names[1:] == [["modulated_adam_retained_"]] * 2
    assert_same(kept, plain)
    versions = [p._version for p in kept[0]]
    step(kept, device)
    assert all(p._version > v for p, v in zip(kept[0], versions, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_does_the_same(device, momentum):
    params, grads, buffers, *_ = adam(device)
    buffers = buffers if momentum else []
    group, weights = updates.groups(len(params)), torch.tensor(updates.WEIGHTS, device=device)
    twin, own = clone([params, buffers])
    kept = RetainedList(twin), RetainedList(own)
    for p, b in ((params, buffers), kept):
        for _ in range(2):
            with Ops() as ops:
                modgrad.modulated_sgd_(p, grads, b, group, weights, lr=0.1, momentum=momentum)
    assert "modgrad_native::modulated_sgd_retained_" in ops.names
    assert_same(kept, (params, buffers))


def test_every_backend_takes_them(backend, device):
    plain = updates.adam(backend, device, torch.float32)
    kept = retained(clone(plain))
    for lists in (plain, kept):
        step(lists, device, backend=backend)
    assert_same(kept, plain)


def test_tensors_are_read_anew_in_every_call(device):
    plain = adam(device)
    kept = retained(clone(plain))
    for lists in (plain, kept):
        step(lists, device)
        for tensors in (lists[0], lists[2]):
            for t in tensors:
                t.data = t.data.clone() + 1  # other memory behind the same tensor
        lists[0][0].data = lists[0][0].data.double()
        for i in (1, 2, 3):
            lists[i][0].data = lists[i][0].data.double()
        step(lists, device)
    assert_same(kept, plain)
    before = clone(kept)
    kept[2][1].data = torch.zeros(3, 7, device=device)
    with pytest.raises(ValueError, match=r"`exp_avgs\[1\]` is torch.float32 \[3, 7\], allowed"):
        step(kept, device)
    assert_same([kept[0], kept[3]], [before[0], before[3]])


def test_lists_beside_retained_ones_are_handed_over_as_ever(device):
    plain = adam(device)
    kept = retained(clone(plain))
    kept[3] = list(kept[3])
    for _ in range(2):
        with Ops() as ops:
            step(kept, device)
        assert "modgrad_native::modulated_adam_" in ops.names
        step(plain, device)
    assert_same(kept, plain)


def test_tensors_live_as_long_as_the_list_and_no_longer(device):
    kept = retained(adam(device))
    step(kept, device)
    seen = weakref.ref(kept[0][0])
    handles = kept[0].handles().tensor
    grads = kept[1]
    del kept
    gc.collect()
    assert seen() is None
    assert not handles.any()
    weights = torch.ones(1, device=device)
    with pytest.raises(RuntimeError, match="`params` was released"):
        native.modulated_sgd_retained_(
            *(handles, grads, handles[:0], [0] * len(grads), weights),
            *(0.1, 0.0, 0.0, 0.0, False, False, False),
        )
    native.release(torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3), torch.zeros(1, 3, dtype=torch.int64), torch.arange(6)[::2]], ids=str
)
def test_what_is_no_list_is_refused(wrong):
    with pytest.raises(RuntimeError, match="`retained` is no list that was retained"):
        native.release(wrong)


def test_released_twice_is_an_error():
    handles = native.retain([torch.ones(2)])
    native.release(handles)
    with pytest.raises(RuntimeError, match="`retained` was released"):
        native.release(handles)


def test_copies_retain_for_themselves(device):
    kept = RetainedList([torch.ones(2, device=device), torch.zeros(3, device=device)])
    handles = kept.handles().tensor
    for twin in (copy.copy(kept), copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert type(twin) is RetainedList
        assert twin.handles().tensor.data_ptr() != handles.data_ptr()
        assert_same([twin], [kept])
    twin = copy.deepcopy(kept)
    assert (twin.handles().tensor != handles).all()


@pytest.mark.parametrize("name", ["params", "exp_avg_sqs", "state_steps"])
def test_another_device_is_an_error(device, name):
    lists = dict(zip(LISTS, adam(device), strict=True))
    before = clone([lists["exp_avgs"]])
    lists[name] = [t.to("meta") for t in lists[name]]
    grads = lists.pop("grads")
    kept = list(map(RetainedList, lists.values()))
    handles = [x.handles().tensor if x else NONE for x in kept]
    group, weights = updates.groups(len(grads)), torch.tensor(updates.WEIGHTS, device=device)
    with pytest.raises(RuntimeError, match=rf"`{name}\[0\]` is not on the device of `weights`"):
        native.modulated_adam_retained_(
            *(handles[0], grads, *handles[1:], group, weights),
            *(0.1, 0.9, 0.99, 1e-8, 0.0, False, False),
        )
    assert_same([lists["exp_avgs"]], before)


def test_the_first_of_many_at_fault_is_named():
    """Threads look at 600 parameters side by side."""
    params, grads, first, second = ([torch.ones(2) for _ in range(600)] for _ in range(4))
    steps = [torch.zeros(()) for _ in params]
    for i in (599, 310, 290):
        second[i] = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"`exp_avg_sqs\[290\]` differs from its parameter"):
        native.modulated_adam_(
            *(params, grads, first, second, [], steps, [0] * 600, torch.ones(1)),
            *(0.1, 0.9, 0.99, 1e-8, 0.0, False, False),
        )
    assert all((p == 1).all() for p in params)


def test_tensors_that_are_more_than_memory_go_through_torch(device):
    negative = torch.randn(3, dtype=torch.complex64, device=device).conj().imag
    assert RetainedList([negative]).handles() is None
    assert RetainedList([torch.eye(2, device=device).to_sparse()]).handles() is None
    assert RetainedList([TwoTensor(torch.ones(2), torch.ones(2))]).handles() is None
    with torch._subclasses.FakeTensorMode():
        assert RetainedList([torch.ones(2)]).handles() is None


def test_what_is_no_tensor_is_named(device):
    lists = RetainedList([torch.ones(2, device=device), None]), [torch.ones(2, device=device)] * 2
    for _ in range(2):
        with pytest.raises(TypeError, match=r"`params\[1\]` is NoneType, allowed: a tensor"):
            modgrad.modulated_sgd_(*lists, [], [0, 0], torch.ones(1, device=device), lr=1.0)


def hook(p, optimizer):
    p.register_hook(lambda grad: (optimizer, None)[1])


def attribute(p, optimizer):
    p.owner = optimizer


@pytest.mark.parametrize("tie", [hook, attribute])
@pytest.mark.parametrize("steps", [0, 3])
def test_no_cycle_passes_through_a_list(tie, steps):
    """From a parameter to its optimizer and back: the collector sees no reference of C++."""
    sides = pair(AdamW)
    train(sides, steps)
    for model, optimizer in sides:
        tie(model.head.weight, optimizer)
    train(sides, 3)
    seen = [weakref.ref(model.head.weight) for model, _ in sides]
    del sides, model, optimizer
    gc.collect()
    assert [x() for x in seen] == [None, None]


def test_a_collection_lets_go_and_the_next_step_retains_again(device):
    plain = adam(device)
    kept = retained(clone(plain))
    for _ in range(3):
        step(plain, device)
        step(kept, device)
        handles = kept[0].handles().tensor
        gc.collect()
        assert not handles.any()
    assert_same(kept, plain)


def test_threads_share_a_list():
    """One of them replaces the handles that another's update reads."""
    for _ in range(20):
        params = RetainedList([torch.zeros(4) for _ in range(1000)])
        grads = [torch.ones(4) for _ in range(1000)]
        barrier = threading.Barrier(3)

        def run(params=params, grads=grads, barrier=barrier):
            barrier.wait()
            for _ in range(3):
                options = {"lr": 1.0, "backend": "native"}
                modgrad.modulated_sgd_(params, grads, [], [0] * 1000, torch.ones(1), **options)

        def collect(barrier=barrier):
            barrier.wait()
            for _ in range(3):
                gc.collect()

        threads = [threading.Thread(target=f) for f in (run, run, collect)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_updates_see_the_tensors(device, fullgraph):
    params = [torch.ones(4, 4, device=device), torch.ones(3, device=device)]
    kept, grads = RetainedList(params), [torch.ones_like(p) for p in params]
    weights = torch.ones(
        1, dtype=torch.float64, device=device
    )  # a temporary of float32 in the graph

    def update(p, g):
        modgrad.modulated_sgd_(p, g, [], [0, 0], weights, lr=0.25, backend="native")

    for _ in range(2):
        update(kept, grads)
    torch.compile(update, backend="aot_eager", fullgraph=fullgraph)(kept, grads)
    for p in params:
        torch.testing.assert_close(p, torch.full_like(p, 0.25), rtol=0, atol=0)


def test_states_that_are_moved_away_are_freed():
    sides = pair(AdamW)
    train(sides, 3)
    optimizer = sides[0][1]
    seen = [weakref.ref(x) for state in optimizer.state.values() for x in state.values()]
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = value.clone()
    del value
    assert [x() for x in seen] == [None] * len(seen)
    train(sides, 2)


def test_a_default_device_does_not_matter():
    code = """
import torch
torch.set_default_device("meta")
import modgrad
torch.set_default_device("cpu")
from conftest import usable
from dispatched import Ops
params, grads = modgrad.RetainedList([torch.ones(2)]), [torch.ones(2)]
for _ in range(2):
    with Ops() as ops:
        modgrad.modulated_sgd_(params, grads, [], [0], torch.ones(1), lr=0.5)
assert ops.own == ["modulated_sgd_"] and "retained" in " ".join(ops.names), ops.names
assert params[0].tolist() == [0, 0]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0


def test_tensors_to_be_copied_on_a_write():
    params = [torch._lazy_clone(torch.ones(3)) for _ in range(2)]
    modgrad.modulated_sgd_(params, params, [], [0, 0], torch.ones(1), lr=0.5, backend="native")
    assert [p.tolist() for p in params] == [[0.5] * 3] * 2
    assert modgrad.group_sq_norms(params, [0, 0], 1, backend="native").tolist() == [1.5]


def test_release_under_a_mode_is_not_seen_by_it(device):
    kept = RetainedList([torch.ones(2, device=device)])
    handles = kept.handles().tensor
    with Ops() as ops:
        del kept
        gc.collect()
    assert ops.names == []
    assert not handles.any()


@pytest.mark.parametrize(
    "transform", [torch.func.functionalize, torch.func.grad, torch.inference_mode()]
)
def test_release_amid_a_transform_frees_the_tensors(transform):
    tensor = torch.ones(2)
    held = {"list": RetainedList([tensor])}
    held["list"].handles()
    last = weakref.ref(tensor)
    del tensor

    def f(x):
        held.clear()
        return x.square().sum()

    transform(f)(torch.ones(2))
    gc.collect()
    assert last() is None


def test_swap_tensors_refuses_rather_than_leave_a_list_behind(device):
    p, q = (torch.nn.Parameter(torch.ones(2, device=device)) for _ in range(2))
    kept = RetainedList([p])
    handles = kept.handles()
    assert handles is not None
    with pytest.raises(RuntimeError, match="holding references to the tensor"):
        torch.utils.swap_tensors(p, q)


def test_nothing_is_retained_where_modules_swap_parameters():
    (model, optimizer), _ = sides = pair(AdamW)
    train(sides, 1)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with Ops() as ops:
            train(sides, 1)
        assert "modgrad_native::modulated_adam_" in ops.names
        optimizer.zero_grad()
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert model.head.weight.dtype == torch.float64


def test_an_optimizer_retains_until_its_state_is_another():
    sides = pair(AdamW)
    train(sides, 3)
    model, optimizer = sides[0]

    def names():
        model(networks.batch(TWO)[0])[1].square().mean().backward()
        with Ops() as ops:
            optimizer.step()
        return [n.split("::")[1] for n in ops.names if n.startswith("modgrad_")]

    inner = optimizer.optimizer.state  # behind the wrapper's back
    state = inner[list(model.parameters())[-1]]
    assert names() == ["modulated_adam_retained_"]
    old = state["exp_avg"]
    state["exp_avg"] = old.clone()
    before = old.clone()
    assert names() == ["modulated_adam_"]
    assert names() == ["modulated_adam_retained_"]
    assert torch.equal(old, before)
    assert not torch.equal(state["exp_avg"], before)
