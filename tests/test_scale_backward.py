import inputs
import pytest
import torch

import modgrad

WEIGHTS = [0.375, 1.0, 2.5]


def features(dtype, device):
    return {
        name: torch.randn(*shape, device=device).to(dtype).requires_grad_()
        for name, shape in {"audio": (5, 7), "visual": (3, 2, 4, 4), "text": (9,)}.items()
    }


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_identity_forward_and_scaled_backward(backend, device, dtype):
    x = features(dtype, device)
    weights = torch.tensor(WEIGHTS, device=device)
    out = modgrad.scale_backward(x, weights, backend=backend)
    assert list(out) == list(x)
    upstream = {name: torch.randn_like(v) for name, v in x.items()}
    sum((out[n] * upstream[n]).sum() for n in x).backward()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for (name, value), weight in zip(x.items(), weights, strict=True):
        assert out[name].data_ptr() == value.data_ptr()  # no copy
        assert torch.equal(value.grad, (upstream[name].to(wide) * weight.to(wide)).to(dtype))


def test_weights_are_read_when_backward_comes_by(backend, device):
    x = features(torch.float32, device)
    weights = torch.ones(3, device=device)
    out = modgrad.scale_backward(list(x.values()), weights, backend=backend)
    weights.copy_(torch.tensor(WEIGHTS))
    sum(o.sum() for o in out).backward()
    for value, weight in zip(x.values(), WEIGHTS, strict=True):
        assert torch.equal(value.grad, torch.full_like(value, weight))


def test_a_feature_without_gradient_stays_without(backend, device):
    x = features(torch.float32, device)
    out = modgrad.scale_backward(x, torch.tensor(WEIGHTS, device=device), backend=backend)
    (out["audio"].sum() + out["text"].sum()).backward()
    assert x["visual"].grad is None
    assert x["text"].grad.unique().tolist() == [2.5]


def test_expanded_and_channels_last_gradients(backend, device):
    x = torch.randn(2, 3, 4, 4, device=device, requires_grad=True)
    weights = torch.tensor([0.5], device=device)
    (y,) = modgrad.scale_backward([x], weights, backend=backend)
    upstream = torch.randn(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last)
    y.backward(upstream)
    assert torch.equal(x.grad, 0.5 * upstream)
    x.grad = None
    (y,) = modgrad.scale_backward([x], weights, backend=backend)
    y.sum().backward()  # its gradient has stride 0
    assert torch.equal(x.grad, torch.full_like(x, 0.5))


def test_second_derivative(backend, device):
    x = torch.tensor([2.0], device=device, requires_grad=True)
    weights = torch.tensor([0.5], device=device)
    (y,) = modgrad.scale_backward([x], weights, backend=backend)
    (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    assert first.item() == 0.5 * 3 * 4
    # d/dx of 0.5 * 3 y^2, where y is scaled on the way back once more
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.item() == 0.5 * 0.5 * 6 * 2


def test_encoder_gradients_scale_exactly_with_a_power_of_two(backend, device):
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).to(
        device
    )
    x = torch.randn(5, 6, device=device)
    plain = torch.autograd.grad(encoder(x).square().sum(), list(encoder.parameters()))
    (h,) = modgrad.scale_backward(
        [encoder(x)], torch.tensor([0.25], device=device), backend=backend
    )
    scaled = torch.autograd.grad(h.square().sum(), list(encoder.parameters()))
    for a, b in zip(plain, scaled, strict=True):
        assert torch.equal(0.25 * a, b)


@pytest.mark.parametrize(
    ("values", "weights", "match"),
    [
        ([torch.ones(2)], torch.ones(2), r"`weights` has shape \[2\], allowed: \[1\]"),
        ([torch.ones(2)], torch.ones(1, device="meta"), "`weights` is on meta"),
        ([], torch.ones(1), "`features` is empty"),
    ],
)
def test_bad_input(values, weights, match):
    with pytest.raises(ValueError, match=match):
        modgrad.scale_backward(values, weights)
