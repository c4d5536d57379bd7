"""modality_cross_entropy under autograd, the compiler and autocast: torch's rules hold."""

import pytest
import torch
import torch.nn.functional as F
from test_modality_cross_entropy import KINDS, of_torch, problem

import modgrad


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(backend, device, kind):
    x = [torch.randn(3, 4, dtype=torch.float64, device=device).requires_grad_() for _ in range(2)]
    given = problem(kind, 3, 4, device, torch.float64)

    def losses(*logits):
        return modgrad.modality_cross_entropy(
            logits, given.targets, **given.options, backend=backend
        ).losses

    assert torch.autograd.gradcheck(losses, x)


def test_weights_are_read_when_backward_comes_by(backend, device):
    x = [torch.randn(4, 6, device=device, requires_grad=True) for _ in range(2)]
    targets = torch.randint(0, 6, (4,), device=device)
    weights = torch.ones(2, device=device)
    found = modgrad.modality_cross_entropy(x, targets, weights, backend=backend)
    weights.copy_(torch.tensor([0.25, 0.0]))
    plain = modgrad.modality_cross_entropy(x, targets, backend=backend)
    assert torch.equal(found.losses, plain.losses)
    grads = torch.autograd.grad(plain.losses.sum(), x)
    found.losses.sum().backward(retain_graph=True)
    assert torch.equal(x[0].grad, 0.25 * grads[0])
    assert torch.equal(x[1].grad, torch.zeros_like(x[1]))
    weights.fill_(1)
    found.losses.sum().backward()  # the second time, with other weights
    torch.testing.assert_close(x[0].grad, 1.25 * grads[0])


def test_only_what_needs_a_gradient_gets_one(backend, device):
    x = [torch.randn(4, 6, device=device, requires_grad=m != 1) for m in range(3)]
    targets = torch.randint(0, 6, (4,), device=device)
    found = modgrad.modality_cross_entropy(x, targets, backend=backend)
    found.losses[2].backward()
    assert x[1].grad is None
    assert not x[0].grad.any()
    reference = modgrad.modality_cross_entropy(x, targets, backend="reference").losses[2]
    (expected_grad,) = torch.autograd.grad(reference, [x[2]])
    torch.testing.assert_close(x[2].grad, expected_grad)
    with torch.no_grad():
        assert not modgrad.modality_cross_entropy(x, targets, backend=backend).losses.requires_grad


@pytest.mark.parametrize("kind", ["classes", "classes, all", "probabilities, all"])
def test_second_derivatives(backend, device, kind):
    x = torch.randn(3, 4, dtype=torch.float64, device=device, requires_grad=True)
    given = problem(kind, 3, 4, device, torch.float64)
    weights = torch.tensor([2.0], device=device)

    def penalty(loss):
        (grad,) = torch.autograd.grad(loss.exp(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    ours = modgrad.modality_cross_entropy(
        [x], given.targets, weights, **given.options, backend=backend
    )
    loss = of_torch(x, given)
    # the weight doubles each gradient, and squares that
    scaled = loss + (loss - loss.detach())
    torch.testing.assert_close(penalty(ours.losses[0]), penalty(scaled))


def test_compiles_without_a_graph_break(backend, device):
    def losses(x, y, targets, weights):
        return modgrad.modality_cross_entropy([x.sin(), y], targets, weights, backend=backend)

    x, y = (torch.randn(4, C, device=device, requires_grad=True) for C in (3, 5))
    targets = torch.randint(0, 3, (4,), device=device)
    weights = torch.tensor([0.25, 3.0], device=device)
    eager = losses(x, y, targets, weights)
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")(x, y, targets, weights)
    torch.testing.assert_close(tuple(compiled), tuple(eager))
    torch.testing.assert_close(
        torch.autograd.grad(compiled.losses.sum(), [x, y]),
        torch.autograd.grad(eager.losses.sum(), [x, y]),
    )


def test_autocast(backend, device):
    linear = torch.nn.Linear(5, 7).to(device)
    h, targets = torch.randn(4, 5, device=device), torch.randint(0, 7, (4,), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        z = linear(h)
        assert z.dtype == torch.bfloat16
        found = modgrad.modality_cross_entropy([z], targets, backend=backend)
        loss = F.cross_entropy(z, targets)
    assert found.losses.dtype == torch.float32
    torch.testing.assert_close(found.losses[0], loss)
    found.losses.sum().backward()
    assert linear.weight.grad.dtype == torch.float32
