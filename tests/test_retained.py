"""Lists of tensors that an update takes as one argument: the same step, and nothing goes stale."""

import copy
import gc
import pickle
import weakref

import networks
import pytest
import torch
import updates
from dispatched import Ops
from test_fused import TWO, AdamW, pair, train

import modgrad
from modgrad import RetainedList
from modgrad.backends import why_not

native = torch.ops.modgrad_native
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")
NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _needs_native(device):
    if why_not(device)["native"] is not None:
        pytest.skip("no native backend")


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
    for _ in range(3):
        step(plain, device)
        with Ops() as ops:
            step(kept, device)
    assert "modgrad_native::modulated_adam_retained_" in ops.names
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
    with Ops() as ops:
        step(kept, device)
    assert "modgrad_native::modulated_adam_" in ops.names
    step(plain, device)
    assert_same(kept, plain)


def test_tensors_live_as_long_as_the_list_and_no_longer(device):
    kept = retained(adam(device))
    step(kept, device)
    seen = weakref.ref(kept[0][0])
    handles = kept[0].handles
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
    handles = kept.handles
    for twin in (copy.copy(kept), copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert type(twin) is RetainedList
        assert twin.handles.data_ptr() != handles.data_ptr()
        assert_same([twin], [kept])
    twin = copy.deepcopy(kept)
    assert (twin.handles != handles).all()


@pytest.mark.parametrize("name", ["params", "exp_avg_sqs", "state_steps"])
def test_another_device_is_an_error(device, name):
    lists = dict(zip(LISTS, adam(device), strict=True))
    before = clone([lists["exp_avgs"]])
    lists[name] = [t.to("meta") for t in lists[name]]
    grads = lists.pop("grads")
    kept = list(map(RetainedList, lists.values()))
    handles = [x.handles if x else NONE for x in kept]
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
    assert RetainedList([negative]).handles is None
    assert RetainedList([torch.eye(2, device=device).to_sparse()]).handles is None
    with torch._subclasses.FakeTensorMode():
        assert RetainedList([torch.ones(2)]).handles is None


def hook(p, optimizer):
    p.register_hook(lambda grad: (optimizer, None)[1])


def attribute(p, optimizer):
    p.owner = optimizer


def flag(p, optimizer):
    p.is_embedding = True


@pytest.mark.parametrize(("tie", "is_retained"), [(hook, False), (attribute, False), (flag, True)])
def test_no_cycle_passes_through_a_list(tie, is_retained):
    """From a parameter to its optimizer and back, where the collector would not see it."""
    sides = pair(AdamW)
    for model, optimizer in sides:
        tie(model.head.weight, optimizer)
    with Ops() as ops:
        train(sides, 2)
    assert ("modgrad_native::modulated_adam_retained_" in ops.names) == is_retained
    seen = [weakref.ref(model.head.weight) for model, _ in sides]
    del sides, model, optimizer
    gc.collect()
    assert [x() for x in seen] == [None, None]


def test_release_under_a_mode_is_not_seen_by_it(device):
    kept = RetainedList([torch.ones(2, device=device)])
    handles = kept.handles
    with Ops() as ops:
        del kept
        gc.collect()
    assert ops.names == []
    assert not handles.any()


def test_swap_tensors_refuses_rather_than_leave_a_list_behind(device):
    p, q = (torch.nn.Parameter(torch.ones(2, device=device)) for _ in range(2))
    kept = RetainedList([p])
    assert kept.handles is not None
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
    train(sides, 2)
    model, optimizer = sides[0]

    def names():
        model(networks.batch(TWO)[0])[1].square().mean().backward()
        with Ops() as ops:
            optimizer.step()
        return [n.split("::")[1] for n in ops.names if n.startswith("modgrad_")]

    assert names() == ["modulated_adam_retained_"]
    state = optimizer.state[next(model.parameters())]
    state["exp_avg"] = state["exp_avg"].clone()
    assert names() == ["retain", "modulated_adam_retained_"]
    assert names() == ["modulated_adam_retained_"]
    assert (state["exp_avg"] != 0).any()
