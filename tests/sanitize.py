"""Every op on small CUDA tensors, checked against the reference: for compute-sanitizer."""

import os
import sys
from collections.abc import Iterator

import torch

import modgrad
from modgrad.backends import why_not
from modgrad.rules import Rule

SIZES = [(3, 5), (0,), (1,), (1023,), (16385,), (2, 3, 4, 5)]


def variants() -> Iterator[None]:
    """In one launch with a barrier of all blocks, then in parts."""
    for cooperative in "10":
        os.environ["MODGRAD_COOPERATIVE"] = cooperative
        yield
    del os.environ["MODGRAD_COOPERATIVE"]


def measures(logits: list[torch.Tensor], targets: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Scores; losses, scores and gradients of classes and of probabilities; weights by a rule."""
    out = []
    wide = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    soft = torch.arange(1, 10, device="cuda", dtype=wide)[:, None].expand(9, 1000) / 5000
    for _ in variants():
        out += [modgrad.modality_scores(logits, targets, backend=backend)]
        for chosen, t in ((logits, targets), (logits[1:], soft)):
            leaves = [x.clone().requires_grad_() for x in chosen]
            found = modgrad.modality_cross_entropy(leaves, t, label_smoothing=0.1, backend=backend)
            out += [*found, *torch.autograd.grad(found.losses.sum(), leaves)]
        leaves = [x.clone().requires_grad_() for x in logits]
        rule = modgrad.OGM(0.5).rule
        balanced = modgrad.balanced_cross_entropy(leaves, targets, rule, backend=backend)
        out += [*balanced, *torch.autograd.grad(balanced.losses.sum(), leaves)]
    return [x.detach() for x in out]


def updates(
    grads: list[torch.Tensor],
    group: list[int],
    weights: torch.Tensor,
    noise: torch.Tensor,
    backend: str,
) -> list[torch.Tensor]:
    """What an update each of SGD and Adam changes, without noise and with it."""
    changed = []
    for extra in ({}, {"noise": noise, "seed": 3}):
        params, first, second, largest, buffers = (
            [(g * factor).abs() for g in grads] for factor in (1.0, 0.5, 2.0, 3.0, 0.25)
        )
        steps = [torch.zeros((), device=g.device) for g in grads]
        sq_norms = torch.empty(2, len(weights), dtype=torch.float64, device=weights.device)
        options = {"sq_norms": sq_norms, "backend": backend, **extra}
        modgrad.modulated_sgd_(
            params, grads, buffers, group, weights, lr=0.1, momentum=0.9, **options
        )
        modgrad.modulated_adam_(
            params,
            grads,
            first,
            second,
            steps,
            group,
            weights,
            lr=0.1,
            max_exp_avg_sqs=largest,
            **options,
        )
        changed += [*params, *first, *second, *largest, *buffers, *steps, sq_norms]
    return changed


def updates_by_rule(
    grads: list[torch.Tensor], group: list[int], rule: Rule, backend: str
) -> list[torch.Tensor]:
    """What an update each of SGD and Adam changes, with weights of its gradients' norms."""
    out = []
    for M in (3, 9):  # in parts, sums and rule are one launch, or two
        states = [[(g * factor).abs() for g in grads] for factor in (1.0, 0.5, 2.0)]
        steps = [torch.zeros((), device=g.device) for g in grads]
        for update, lists in (
            (modgrad.modulated_sgd_, [[]]),
            (modgrad.modulated_adam_, [*states[1:], steps]),
        ):
            weights = torch.empty(M, device="cuda")
            update(states[0], grads, *lists, group, weights, lr=0.1, rule=rule, backend=backend)
            out += [weights, *(t.clone() for t in states[0])]
        out += [*states[1], *states[2], *steps]
    return out


def decisions(
    grads: list[torch.Tensor],
    per_loss: list[list[torch.Tensor | None]],
    group: list[int],
    losses: torch.Tensor,
    backend: str,
) -> list[torch.Tensor]:
    """What rules decide, and what follows: alone, from gradients, in an update."""
    out = []
    equal = modgrad.EqualNorms(0.5).rule
    gram = torch.rand(300, 1, 1, device="cuda", dtype=torch.float64)
    out += [modgrad.rule_weights(gram, equal, backend=backend)[0]]
    for _ in variants():
        changed = [g.clone() for g in grads]
        out += [*modgrad.balance_(changed, group, 3, equal, backend=backend)[:2], *changed]
        out += updates_by_rule(grads, group, equal, backend)
        for balancer in (modgrad.PCGrad(), modgrad.GradNorm()):
            by_norms = balancer.rule.name == "gradnorm"
            state = torch.ones(2, 2, device="cuda").unbind() if by_norms else ()
            combined = [torch.empty_like(g) for g in grads]
            found = modgrad.balance_(
                *(per_loss, group, 3, balancer.rule, losses, state),
                out=combined,
                backend=backend,
            )
            out += [found.gram, found.weights, *found.state, *combined]
    return [x.detach() for x in out]


def run(backend: str) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        grads = [torch.randn(size, device="cuda").to(dtype) for size in SIZES]
        grads.append(torch.randn(100, device="cuda").to(dtype)[1:98])
        group = [i % 3 for i in range(len(grads))]
        weights = torch.tensor([0.5, 1.0, 2.0], device="cuda")
        noise = torch.tensor([0.25, 1.0, 0.5], device="cuda")
        per_loss = [grads, [None if i == 3 else g + 1 for i, g in enumerate(grads)]]
        matrix = torch.tensor([[0.5, 1.0], [2.0, 0.0], [1.0, -1.0]], device="cuda")
        logits = [torch.randn(9, c, device="cuda").to(dtype) for c in (2, 1000)]
        targets = torch.randint(0, 2, (9,), device="cuda")
        out = {}
        for name in (backend, "reference"):
            changed = [g.clone() for g in grads]
            modgrad.modulate_(changed, group, weights, backend=name)
            modgrad.modulate_(changed, group, weights, noise, 3, backend=name)
            features = [torch.randn(4, 7, device="cuda", requires_grad=True) for _ in range(3)]
            scaled = modgrad.scale_backward(features, weights, backend=name)
            sum(x.sum() for x in scaled).backward()
            combined = [torch.empty_like(g) for g in grads]
            modgrad.combine_(combined, per_loss, group, matrix, backend=name)
            updated = updates(grads, group, weights, noise, name)
            torch.manual_seed(1)
            decided = decisions(grads, per_loss, group, targets[:2] + 0.5, name)
            out[name] = [
                modgrad.group_sq_norms(grads, group, 3, backend=name),
                *measures(logits, targets, name),
                modgrad.group_gram(per_loss, group, 3, backend=name),
                *combined,
                *changed,
                *updated,
                *decided,
                *(f.grad for f in features),
            ]
        for found, expected in zip(out[backend], out["reference"], strict=True):
            # normals agree to float32's log and cos; the exact comparisons are in test_*.py
            bound = max(8 * torch.finfo(found.dtype).eps, 1e-5)
            torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
    torch.cuda.synchronize()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("sanitize.py needs a GPU")
    for name in ("native", "triton"):
        reason = why_not("cuda")[name]
        if reason is not None:
            sys.exit(f"backend {name} cannot run: {reason}")
        run(name)
        print(f"{name}: every op equals the reference")
