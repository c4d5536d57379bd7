"""A step of SGD, Adam or AdamW with the weights folded in: modulation has no pass of its own."""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modgrad import update_parts as parts
from modgrad.modulator import Modulator
from modgrad.records import Pending
from modgrad.update_options import Apply


class FusedStep:
    """Steps an optimizer on its own state tensors, by ``modulated_sgd_`` and its like.

    Which parameters have gradients, and where their states are, is kept between steps: to find out
    takes torch half the time of a step of small tensors.
    """

    def __init__(self, optimizer: Optimizer, modulator: Modulator, apply: Apply) -> None:
        self._optimizer, self._modulator, self._apply = optimizer, modulator, apply
        self._checked: Sequence[Tensor] = ()  # the parameters that have
        self._reason: str | None = None
        self._parts: list[parts.Part] = []
        self._made_of: list[Any] = []
        self._kinds: tuple[Any, ...] = ()
        self._ones: dict[torch.device, Tensor] = {}  # weights of gradients that have theirs

        def step(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            return self._step(closure)

        # Hooks and the profiler's label come as with the optimizer's own step.
        self._hooked = Optimizer.profile_hook_step(step)
        # one launch already: nothing that a compiler could fuse
        self._run = torch.compiler.disable(self._decide_and_update)

    def why_not(self) -> str | None:
        """Why the optimizer must step itself, or None."""
        held = self._modulator.held
        if held is not self._checked:
            self._reason, self._checked = parts.why_not_parameters(self._optimizer), held
        return parts.why_not_options(self._optimizer) or self._reason

    def let_go(self) -> None:
        """Of the states themselves, which others may replace to free their memory."""
        for part in self._parts:
            part.lists.clear()

    def forget(self) -> None:
        """Let go of the states of the last step, where others are in use."""
        self._parts, self._made_of = [], []

    def __call__(self, closure: Callable[[], Any] | None = None) -> Any:
        """Decide, then update. A closure is run first; its value is returned."""
        return self._run(closure)

    def _decide_and_update(self, closure: Callable[[], Any] | None) -> Any:
        arguments = () if closure is None else (closure,)
        with self._modulator.folded():
            loss = self._hooked(self._optimizer, *arguments)
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers look for it
        return loss

    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = self._modulator.held
        grads = [p.grad for p in held]
        try:
            self._update_all(held, grads)
        except (ValueError, NotImplementedError):
            _check_layouts(grads)  # which says more
            raise
        return loss

    def _update_all(self, held: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        pending = self._modulator.decide(grads, ahead=True)
        self._gather(held, grads)
        if pending is not None and pending.rule is not None and len(self._parts) > 1:
            pending = self._modulator.decide(grads)  # one update of several sees not all norms
        states = [part.states() for part in self._parts]
        if len(self._parts) > 1:
            for part, (_, is_new) in zip(self._parts, states, strict=True):
                part.check(grads, is_new)
        sq_norms = self._buffers(pending)
        for part, (lists, _), each in zip(self._parts, states, sq_norms, strict=True):
            self._update(part, lists, grads, pending, each)
        if any(part.is_first_step for part in self._parts):
            self._made_of = []  # momentum has started: gather again
        if pending is not None:
            self._modulator.commit(pending, _sums_of(sq_norms))

    def _buffers(self, pending: Pending | None) -> list[Tensor | None]:
        """For each part where its update puts squared norms, if they are wanted; skipped, NaN."""
        if pending is None or not pending.late:
            return [None] * len(self._parts)
        size = 2, len(pending.decision.weights)
        nan = torch.full(size, torch.nan, dtype=torch.float64, device=self._parts[0].device)
        return [nan.to(p.device, copy=True) for p in self._parts]

    def _gather(self, held: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Make the parts anew where what they are made of is not what it was."""
        optimizer = self._optimizer
        # model.cuda() moves the same parameters: the first tells
        kinds = held[0].device, parts.kinds(optimizer), [grad is None for grad in grads]
        made_of = [held, *optimizer.state.values()]
        is_stale = (
            kinds != self._kinds
            or len(made_of) != len(self._made_of)
            or not all(map(is_, made_of, self._made_of))
        )
        if is_stale or len(self._parts) > 1:  # an update alone refuses before it changes anything
            _check_layouts(grads)
        if is_stale:
            self._parts = parts.gather(optimizer, grads, self._modulator.owner)
            self._kinds, self._made_of = kinds, [held, *optimizer.state.values()]

    def _update(
        self,
        part: parts.Part,
        states: parts.Lists,
        grads: Sequence[Tensor | None],
        pending: Pending | None,
        sq_norms: Tensor | None,
    ) -> None:
        device, noise, seed = part.device, None, None
        if pending is None or pending.applied:  # gradients are as they should be
            if device not in self._ones:
                self._ones[device] = torch.ones(1, device=device)
            weights, owner = self._ones[device], [-1] * len(part.places)
        else:
            weights, owner = pending.decision.weights[:, 0].to(device), part.owner
            noise, seed = pending.decision.modulation.noise, pending.seed
        update, options = part.update()
        update(
            part.parameters,
            [grads[i] for i in part.places],
            group=owner,
            weights=weights,
            apply=self._apply,
            noise=_on(device, noise),
            seed=_on(device, seed),
            stream=None if noise is None else part.stream,
            grad_scale=_on(device, getattr(self._optimizer, "grad_scale", None)),
            found_inf=_on(device, getattr(self._optimizer, "found_inf", None)),
            sq_norms=sq_norms,
            rule=None if pending is None else pending.rule,
            backend=self._modulator.backend,
            **states,
            **options,
        )


def _check_layouts(grads: Sequence[Tensor | None]) -> None:
    for layout in {grad.layout for grad in grads if grad is not None} - {torch.strided}:
        raise ValueError(
            f"a gradient has layout {layout}, allowed: torch.strided; with fused=False what the"
            " optimizer takes, for shared parameters"
        )


def _sums_of(sq_norms: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Squared norms over all parts, on the first one's device."""
    found = [x for x in sq_norms if x is not None]
    if not found:
        return {}
    total = sum((x.to(found[0].device) for x in found[1:]), found[0])
    return {"grad_sq_norms": total[0], "param_sq_norms": total[1]}


def _on(device: torch.device, value: Tensor | None) -> Tensor | None:
    return None if value is None else value.to(device)
