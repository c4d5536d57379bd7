"""Which optimizers' steps are fused, and what becomes of the others."""

import networks
import pytest
import torch
from fused import INNER, SGD, TWO, Adam, backward, wrap


class OwnSGD(SGD):
    pass


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (OwnSGD, "it is OwnSGD, allowed: SGD, Adam and AdamW, no subclass"),
        (lambda p: Adam(p, differentiable=True), "it is differentiable"),
        (
            lambda p: Adam([*p, torch.nn.Parameter(torch.ones(1, device="meta"))]),
            "it counts steps on the host, allowed on meta: fused=True or capturable=True",
        ),
        (
            lambda p: SGD(p, weight_decay=torch.tensor(0.1)),
            "its betas or weight_decay are tensors",
        ),
    ],
)
def test_what_cannot_be_fused_is_modulated(inner, reason):
    model = networks.LateFusion()
    with pytest.raises(ValueError, match=f"the step cannot be fused: {reason}"):
        wrap(model, inner, fused=True)
    optimizer = wrap(model, inner)
    assert not optimizer.fused
    assert not optimizer._step_supports_amp_scaling
    backward(model, optimizer, *networks.batch(TWO))
    expected = 0.3 * model.encoders["audio"][0].weight.grad
    if type(optimizer.optimizer) is not Adam:
        optimizer.step()
        assert torch.equal(model.encoders["audio"][0].weight.grad, expected)


def test_what_can_no_longer_be_fused():
    model = networks.LateFusion()
    for fused in (None, True):
        optimizer = wrap(model, INNER["SGD"], fused=fused)
        optimizer.param_groups[0]["lr"] = -0.1  # ascent: torch takes it
        if fused:
            with pytest.raises(
                RuntimeError, match=r"any more: its lr is -0.1, allowed: \[0, inf\)"
            ):
                optimizer.step()
        else:
            assert not optimizer.fused
            optimizer.step()


def test_parameters_of_another_kind_are_looked_at_when_they_come():
    model = networks.LateFusion()
    optimizer = wrap(model, INNER["Adam"])
    assert optimizer.fused
    optimizer.add_param_group(
        {"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]}
    )
    assert not optimizer.fused
