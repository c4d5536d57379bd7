"""The ops as torch sees them: schemas, fakes, compile, and the choice of a backend."""

import pytest
import torch

import modgrad
from modgrad.backends import BackendUnavailableError, native, select, triton, why_not
from modgrad.backends.protocol import SCHEMAS


def samples(device):
    grads = [torch.randn(3, 4, device=device), torch.randn(7, device=device)]
    weights = torch.tensor([0.5, 2.0], device=device)
    noise, seed = torch.tensor([1.0, 0.0], device=device), torch.tensor(3, device=device)
    logits = [torch.randn(4, 3, device=device), torch.randn(4, 3, device=device)]
    classes = torch.tensor([0, 2, -100, 1], device=device)
    probabilities = torch.rand(4, 3, device=device)
    lse = torch.stack([x.double().logsumexp(1) for x in logits])
    mass = torch.tensor([1.0, 1.0, 0.0, 1.0, 3.0], device=device, dtype=torch.float64)
    upstream = torch.tensor([0.5, 2.0, 1.0], device=device)
    spd = torch.eye(2, dtype=torch.float64, device=device).repeat(2, 1, 1) + 0.1
    params, first, second, largest = (
        [torch.rand(3, 4, device=device), torch.rand(7, device=device)] for _ in range(4)
    )
    steps = [torch.tensor(3.0, device=device), torch.tensor(0.0, device=device)]
    one = torch.ones(1, device=device)
    every_option = {
        "scale_update": True,
        "lr_tensor": one / 10,
        "grad_scale": 2 * one,
        "found_inf": 0 * one,
        "noise": noise,
        "seed": seed,
        "stream": [3, 2],
        "sq_norms": torch.zeros(2, 2, dtype=torch.float64, device=device),
    }
    ruled = {"rule": "equal_norms", "parameters": [1.0, 1e3]}
    sgd = (params, grads, first, [1, -1], weights, 0.1, 0.9, 0.1, 0.01, True, False, False)
    adam = (params, grads, first, second)
    decay = (steps, [1, -1], weights, 0.1, 0.9, 0.99, 1e-8, 0.01)
    return {
        "group_sq_norms": [(grads, [0, 1], 3)],
        "modulate_": [(grads, [1, 0], weights), (grads, [1, 0], weights, noise, seed)],
        "modality_scores": [(logits, torch.tensor([0, 2, 1, 1], device=device))],
        "scale_backward": [(grads, weights)],
        "group_gram": [([*grads, grads[0] + 1], [0, 1, 0], [0, 0, 1], [1, 0], 2, 2)],
        "modality_cross_entropy": [
            (logits, classes, None, -100, 0.0),
            (logits, probabilities, upstream, -100, 0.1),
            (logits, classes, None, -100, 0.0, "ogm", [0.3, 0.0], 0),
        ],
        "modality_cross_entropy_backward": [
            (logits, [0, 1], classes, None, -100, 0.0, lse, mass, upstream[:2], weights),
            (logits[1:], [1], probabilities, upstream, -100, 0.1, lse, mass, upstream[:2], None),
        ],
        "combine_": [
            (
                [torch.randn(3, 4, device=device), torch.randn(7, device=device)],
                [*grads, grads[0] + 1],
                [0, 1, 0],
                [0, 0, 1],
                [1, 0],
                torch.randn(2, 2, device=device),
            )
        ],
        "rule_weights": [
            (upstream[:2], "ogm", [0.3, 0.0], None, []),
            (spd, "gradnorm", [1.0, 0.1], upstream[:2], [weights, weights + 1]),
        ],
        "balance_": [
            (grads, [], [], [], [0, 1], 2, 1, "equal_norms", [1.0, 1e3], None, []),
            (
                [torch.randn(3, 4, device=device), torch.randn(7, device=device)],
                [*grads, grads[0] + 1],
                *([0, 1, 0], [0, 0, 1], [1, 0], 2, 2),
                *("gradnorm", [1.0, 0.1], upstream[:2], [weights, weights + 1]),
            ),
        ],
        "modulated_sgd_": [sgd, (sgd, every_option), (sgd, ruled)],
        "modulated_adam_": [
            (*adam, [], *decay, True, False),
            ((*adam, largest, *decay, False, True), every_option),
            ((*adam, [], *decay, True, False), ruled),
        ],
    }


@pytest.mark.parametrize("op", SCHEMAS)
def test_opcheck(backend, device, op):
    for arguments in samples(device)[op]:
        registered = getattr(getattr(torch.ops, f"modgrad_{backend}"), op).default
        options = arguments[-1] if isinstance(arguments[-1], dict) else {}
        positional = arguments[0] if options else arguments
        torch.library.opcheck(registered, positional, options)


def test_every_op_has_samples():
    assert set(samples("cpu")) == set(SCHEMAS)


def test_compiled_ops_equal_eager_ones(backend, device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(grads, weights, noise, seed, logits, targets):
        norms = modgrad.group_sq_norms(grads, [0, 1], 2, backend=backend)
        modgrad.modulate_(grads, [1, 0], weights, noise, seed, backend=backend)
        return norms, modgrad.modality_scores(logits, targets, backend=backend)

    inputs = {op: arguments[-1] for op, arguments in samples(device).items()}
    grads, _, weights, noise, seed = inputs["modulate_"]
    logits, targets = inputs["modality_scores"]
    eager = [g.clone() for g in grads]
    expected_norms = modgrad.group_sq_norms(eager, [0, 1], 2, backend=backend)
    modgrad.modulate_(eager, [1, 0], weights, noise, seed, backend=backend)
    expected_scores = modgrad.modality_scores(logits, targets, backend=backend)
    norms, scores = step(grads, weights, noise, seed, logits, targets)
    torch.testing.assert_close(norms, expected_norms)
    torch.testing.assert_close(scores, expected_scores)
    torch.testing.assert_close(grads, eager)


def test_scale_backward_compiles_without_a_graph_break(backend, device):
    def loss(x, y, weights):
        h = modgrad.scale_backward([x.sin(), y.cos()], weights, backend=backend)
        return (h[0] * h[1]).sum()

    x, y = (torch.randn(4, 3, device=device, requires_grad=True) for _ in range(2))
    weights = torch.tensor([0.25, 3.0], device=device)
    expected = torch.autograd.grad(loss(x, y, weights), [x, y])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x, y, weights), [x, y])
    torch.testing.assert_close(found, expected)


def test_backend_asked_for_by_name_runs_or_raises(monkeypatch):
    with pytest.raises(BackendUnavailableError, match=r"'native' cannot run on meta: there are no"):
        select(torch.device("meta"), "native")
    with pytest.raises(ValueError, match="`backend` is 'cutlass', allowed: native, triton"):
        select(torch.device("cpu"), "cutlass")
    monkeypatch.setenv("MODGRAD_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="'nonsense'"):
        modgrad.group_sq_norms([torch.ones(1)], [0], 1)
    monkeypatch.setenv("MODGRAD_BACKEND", "reference")
    assert select(torch.device("cpu")).__name__ == "modgrad.backends.reference"


def test_unnamed_choice_falls_through_and_says_why(monkeypatch):
    monkeypatch.delenv("MODGRAD_BACKEND", raising=False)
    monkeypatch.setitem(native._REASONS, "cpu", "it was not built")
    assert select(torch.device("cpu")).__name__ == "modgrad.backends.reference"
    assert why_not("cpu")["native"] == "it was not built"
    with pytest.raises(BackendUnavailableError, match="it was not built"):
        select(torch.device("cpu"), "native")


def test_triton_says_what_it_needs(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in triton.unusable(torch.device("cpu"))
