"""The states of fused steps: saved, loaded, moved, copied, and kept where a step is not made."""

import copy
import io
import math
import pickle

import networks
import pytest
import torch
from fused import (
    INNER,
    TWO,
    UNEVEN,
    AdamW,
    assert_equal,
    assert_same,
    backward,
    pair,
    train,
    values,
    wrap,
)

from modgrad import OGM, Modalities, ModulatedOptimizer


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "AdamW fused"])
def test_checkpoints_go_to_the_plain_optimizer_and_back(name):
    sides = pair(INNER[name])
    train(sides, 2)
    for model, optimizer in sides:
        plain = INNER[name](model.parameters())
        plain.load_state_dict(optimizer.state_dict())
        backward(model, optimizer, *networks.batch(TWO))
        plain.step()
        file = io.BytesIO()
        torch.save(plain.state_dict(), file)
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))
        torch.manual_seed(0)
    (model, fused), (twin, unfused) = sides
    twin.load_state_dict(model.state_dict())
    unfused.load_state_dict(copy.deepcopy(fused.state_dict()))
    train(sides, 3)
    assert_equal(sides, 3)


def test_adam_decays_as_a_checkpoint_of_adamw_says():
    sides = pair(INNER["Adam"])
    for model, optimizer in sides:
        optimizer.load_state_dict(AdamW(model.parameters(), weight_decay=0.5).state_dict())
    train(sides, 3)
    assert_equal(sides, 3)


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW"])
def test_states_put_back_or_moved_are_seen(name):
    """As offloading does between steps, and what tries out a step and undoes it."""

    def between(i, model, optimizer):
        state = optimizer.state
        if i == 2:
            kept = {p: copy.deepcopy(held) for p, held in state.items()}
            optimizer.modulator.enabled = False
            optimizer.step()
            optimizer.modulator.enabled = True
            state.clear()
            state.update(kept)
        if i == 4:
            for held in state.values():
                for key, value in held.items():
                    held[key] = value.clone()

    sides = pair(INNER[name])
    train(sides, 6, between)
    assert_equal(sides, 6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_step_their_own_states(duplicate):
    (model, optimizer), _ = pair(INNER["AdamW"], apply="update")
    train([(model, optimizer)], 2)
    twin, other = duplicate((model, optimizer))
    assert other.fused
    before = values(twin, other)
    train([(model, optimizer)], 1)
    assert_same(values(twin, other), before)
    assert not torch.equal(model.head.weight, twin.head.weight)


@pytest.mark.parametrize("name", ["SGD momentum", "SGD dampening", "AdamW", "AdamW fused"])
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(name, unscale):
    announced = name != "SGD dampening"
    # a step that the scaler skips by itself leaves the scores of its batch to the next
    (model, optimizer), (twin, unfused) = sides = pair(
        INNER[name], balancer=OGM(0.5) if announced else UNEVEN, record=["grad_sq_norms"]
    )
    assert optimizer._step_supports_amp_scaling == announced
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (math.inf, 1.0, math.nan, 1.0, 2.0):
        batch, before = networks.batch(TWO), values(model, optimizer)
        backward(model, optimizer, *batch, lambda x: scaler.scale(x * factor))  # noqa: B023
        norm = sum(p.grad.double().square().sum() for p in model.encoders["audio"].parameters())
        norm = norm / scaler.get_scale() ** 2
        if unscale:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        if math.isfinite(factor):
            backward(twin, unfused, *batch, lambda x: x * factor)  # noqa: B023
            if unscale:
                torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            unfused.step()
            if not unscale:
                found = optimizer.modulator.last.grad_sq_norms[0]
                torch.testing.assert_close(found, norm, rtol=1e-6, atol=0)
            continue
        after = values(model, optimizer)
        assert_same(after[0], before[0])
        assert_same(after[1]["modgrad"], before[1]["modgrad"])
        if before[1]["state"]:
            assert_same(after[1]["state"], before[1]["state"])
        else:  # made, as the optimizer makes it
            made = [x for state in after[1]["state"].values() for x in state.values()]
            assert not any(x.any() for x in made)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    assert_equal(sides, 5)
    assert optimizer.modulator.state_dict()["step"] == 3


def test_errors_change_nothing():
    def grouped(parameters):
        first, *rest = parameters
        return AdamW([{"params": [first]}, {"params": rest}], lr=0.1)

    model = networks.LateFusion()
    optimizer = wrap(model, grouped, OGM(0.5))
    for _ in range(2):  # without states, and with
        inputs, targets = networks.batch(TWO)
        before = values(model, optimizer)
        backward(model, optimizer, inputs, targets)
        weight = model.head.weight
        dense = weight.grad
        weight.grad = dense.to_sparse()
        with pytest.raises(ValueError, match=r"layout torch\.sparse_coo, allowed: torch\.strided"):
            optimizer.step()
        weight.grad = dense
        optimizer.modulator._seen.replace(None)
        with pytest.raises(RuntimeError, match="OGM needs scores"):
            optimizer.step()
        assert_same(values(model, optimizer), before)
        backward(model, optimizer, inputs, targets)
        optimizer.step()
    assert optimizer.modulator.state_dict()["step"] == 2


def other_gradient(optimizer, weight):
    weight.grad_dtype = None
    weight.grad = weight.grad.bfloat16()


def other_rate(optimizer, weight):
    optimizer.param_groups[1]["lr"] = torch.tensor([0.1, 0.1])


def other_betas(optimizer, weight):
    optimizer.param_groups[1]["betas"] = (0.9, 1.0)


def other_moment(optimizer, weight):
    moments = optimizer.optimizer.state[weight]
    moments["exp_avg"] = moments["exp_avg"].double()


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (other_gradient, r"`grads\[\d\]` is torch.bfloat16"),
        (other_rate, r"`lr` is torch.float32 \[2\]"),
        (other_betas, r"`betas\[1\]` is 1.0, allowed: \[0, 1\)"),
        (other_moment, r"`exp_avgs\[\d\]` is torch.float64"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_an_error_of_a_later_group_comes_before_the_first_is_updated(spoil, match):
    model = networks.LateFusion()
    inner = AdamW([{"params": part.parameters()} for part in (model.encoders, model.head)], lr=0.1)
    optimizer = ModulatedOptimizer(inner, Modalities(model, **model.specs()), UNEVEN)
    backward(model, optimizer, *networks.batch(TWO))
    optimizer.step()
    spoil(optimizer, model.head.weight)
    before = copy.deepcopy(model.encoders.state_dict())
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    assert_same(model.encoders.state_dict(), before)
    assert optimizer.modulator.state_dict()["step"] == 1
