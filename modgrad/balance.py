"""From gradients, or scores, to weights by a rule, and to balanced gradients: one op each.

Shape letters: M modalities or groups, K losses, P tensors.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modgrad import checks, per_loss, rules
from modgrad.backends import select
from modgrad.calls import REFUSALS, check_refusal, write_back
from modgrad.ops import dense_in_memory
from modgrad.per_loss import PerLoss
from modgrad.rules import Rule


class Balanced(NamedTuple):
    """gram float64 [M, K, K]; weights float32 [M, K]; the rule's next state."""

    gram: Tensor
    weights: Tensor
    state: tuple[Tensor, ...]


def _check(
    rule: Rule,
    reads: str,
    M: int,
    K: int,
    losses: Tensor | None,
    state: Sequence[Tensor],
    device: torch.device,
) -> Tensor | None:
    """The losses as backends take them."""
    kind = rules.check(rule)
    if kind.reads != reads:
        raise ValueError(f"`rule` {rule.name!r} reads {kind.reads}, given are {reads}")
    if reads == "scores" and M < 2:
        raise ValueError(f"`statistic` has {M} scores, allowed with {rule.name!r}: at least 2")
    if rule.name == "mmpareto" and K != M + 1:
        raise ValueError(f"`rule` {rule.name!r} has {K} losses, allowed: {M + 1}, one more than M")
    if kind.compares_losses != (K > 1):
        allowed = "at least 2" if kind.compares_losses else "1"
        raise ValueError(f"`rule` {rule.name!r} has {K} losses, allowed: {allowed}")
    if len(state) != kind.num_states:
        found = f"`state` has {len(state)} entries"
        raise ValueError(f"{found}, allowed with {rule.name!r}: {kind.num_states}")
    for i, value in enumerate(state):
        checks.vector(f"state[{i}]", value, K, device)
        if value.dtype != torch.float32:
            raise TypeError(f"`state[{i}]` has dtype {value.dtype}, allowed: torch.float32")
    if not kind.num_states:
        return None
    if losses is None:
        raise ValueError(f"`losses` is None, allowed with {rule.name!r}: a tensor [{K}]")
    checks.vector("losses", losses, K, device)
    return losses.detach().float().contiguous()


@torch.no_grad()
def rule_weights(
    statistic: Tensor,
    rule: Rule,
    losses: Tensor | None = None,
    state: Sequence[Tensor] = (),
    *,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Weights by a balancer's rule, in one op instead of the dozen of its ``update``.

    Args:
        statistic: scores [M], or a gram [M, K, K].
        rule: ``OGM(...).rule``, ``MMPareto(...).rule`` and their like; their docstrings have the
            formulas, which are computed in float64 and rounded once.
        losses: [K], for a rule with a state.
        state: float32 [K] tensors; nothing changes in place.
        backend: its name; None takes the first that can run.

    Returns:
        weights float32 [M, K] (K = 1 with scores), and the next state.
    """
    device = checks.tensors("statistic", [statistic])
    of_scores = statistic.dim() == 1
    if not of_scores and (statistic.dim() != 3 or statistic.shape[1] != statistic.shape[2]):
        raise ValueError(f"`statistic` has shape {list(statistic.shape)}, allowed: [M], [M, K, K]")
    if statistic.numel() == 0:
        raise ValueError(f"`statistic` has shape {list(statistic.shape)}, allowed: M, K >= 1")
    M, K = len(statistic), 1 if of_scores else statistic.shape[1]
    reads = "scores" if of_scores else "gram"
    losses = _check(rule, reads, M, K, losses, state, device)
    statistic = statistic.detach().to(torch.float32 if of_scores else torch.float64).contiguous()
    states = [x.detach().contiguous() for x in state]
    chosen = select(device, backend)
    weights, new = chosen.rule_weights(statistic, rule.name, rule.parameters, losses, states)
    return weights, new.unbind()


@torch.no_grad()
def balance_(
    grads: Sequence[Tensor] | Sequence[Sequence[Tensor | None]],
    group: Sequence[int],
    num_groups: int,
    rule: Rule,
    losses: Tensor | None = None,
    state: Sequence[Tensor] = (),
    *,
    out: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Balanced:
    """Measure gradients, find the weights by a rule, and apply them: one op.

        gram[m, k, j] = sum over p with group[p] = m of <g_k[p], g_j[p]>,  weights = rule(gram)
        one loss:  g[p] <- weights[group[p]] g[p]
        several:   out[p] <- sum_k weights[group[p], k] g_k[p]

    As ``group_sq_norms`` or ``group_gram``, ``rule_weights``, and ``modulate_`` or ``combine_``.

    Args:
        grads: P tensors of one loss, changed in place; or, with ``out``, K lists of P tensors, None
            where a loss does not reach a parameter.
        group: P integers in [0, num_groups).
        num_groups: M.
        rule: one that reads a gram, such as ``EqualNorms().rule`` or ``MMPareto().rule``.
        losses, state: as in ``rule_weights``.
        out: P tensors, overwritten; none of them may be one of the gradients.
        backend: its name; None takes the first that can run.
    """
    if out is None:
        in_place: Sequence[Tensor] = grads  # type: ignore[assignment]
        device, K = checks.tensors("grads", in_place), 1
    else:
        in_place, device, K = out, checks.tensors("out", out), len(grads)
    checks.group(group, len(in_place), num_groups)
    losses = _check(rule, "gram", num_groups, K, losses, state, device)
    dense, states = dense_in_memory(in_place), [x.detach().contiguous() for x in state]
    chosen = select(device, backend)

    def call(lists: PerLoss) -> tuple[Tensor, Tensor, Tensor]:
        return chosen.balance_(
            dense, *lists, group, num_groups, K, rule.name, rule.parameters, losses, states
        )

    if out is None:
        gram, weights, new = call(PerLoss([], [], []))
    else:
        gram, weights, new = _several(call, grads, out, backend)  # type: ignore[arg-type]
    write_back(in_place, dense)
    return Balanced(gram, weights, new.unbind())


def _several(
    call: Callable[[PerLoss], tuple[Tensor, Tensor, Tensor]],
    grads: Sequence[Sequence[Tensor | None]],
    out: Sequence[Tensor],
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The call with the lists of K losses."""
    if per_loss.can_be_flat(grads, len(out), backend):
        try:
            return call(per_loss.flat(grads))
        except REFUSALS as error:
            check_refusal(error)
    lists = per_loss.checked(grads, out)
    if len(grads[0]) != len(out):
        raise ValueError(f"`out` has {len(out)} tensors, allowed: {len(grads[0])}")
    return call(lists)
