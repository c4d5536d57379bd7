"""Two faces of the modulator: a hook on the user's own optimizer, and a wrapper around it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Unpack

from modgrad.balancers.base import Balancer
from modgrad.fused import FusedStep
from modgrad.modalities import Modalities
from modgrad.modulator import Modulator
from modgrad.observation import Observation
from modgrad.records import Options
from modgrad.update_options import Apply, check_apply
from modgrad.update_parts import why_not


class _StepHook:
    """A step pre-hook: modulates before the update; with a closure, after each evaluation."""

    def __init__(self, modulator: Modulator) -> None:
        self.modulator = modulator

    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self.modulator.modulate()
            return None

        def modulated_closure() -> Any:
            with torch.enable_grad():
                loss = closure()
            self.modulator.modulate()
            return loss

        if len(args) > 1:
            return (args[0], modulated_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": modulated_closure}


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        found = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else kind
        raise TypeError(f"`optimizer` is {found}, allowed: an Optimizer")


def attach(
    optimizer: Optimizer,
    modalities: Modalities,
    balancer: Balancer[Any],
    **options: Unpack[Options],
) -> Modulator:
    """Balance the gradients before every step of the user's own optimizer, by a step pre-hook.

    For trainers that build or wrap the optimizer themselves. torch drops hooks when an optimizer is
    copied or pickled; save ``modulator.state_dict()`` beside the optimizer's. ``detach`` undoes it.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        modalities, balancer, options: as for ``Modulator``.

    Raises:
        TypeError, ValueError: an argument is not as above; the optimizer is left as it was.
        RuntimeError: the optimizer is modulated already.
    """
    _check_optimizer(optimizer)
    if isinstance(optimizer, ModulatedOptimizer) or _hooks(optimizer):
        raise RuntimeError("the optimizer is modulated already; detach(optimizer) first")
    modulator = Modulator(modalities, balancer, optimizer, **options)
    optimizer.register_step_pre_hook(_StepHook(modulator))
    return modulator


def detach(optimizer: Optimizer) -> None:
    """Undo ``attach``: the optimizer steps with the gradients as they are.

    Raises:
        RuntimeError: nothing is attached.
    """
    _check_optimizer(optimizer)
    keys = _hooks(optimizer)
    if not keys:
        raise RuntimeError("nothing is attached to the optimizer")
    for key in keys:
        del optimizer._optimizer_step_pre_hooks[key]


def _hooks(optimizer: Optimizer) -> dict[int, _StepHook]:
    hooks = optimizer._optimizer_step_pre_hooks
    return {key: hook for key, hook in hooks.items() if isinstance(hook, _StepHook)}


def modulator_of(optimizer: Optimizer) -> Modulator | None:
    """That of a wrapper, or of what is attached; None where nothing modulates."""
    return next((hook.modulator for hook in _hooks(optimizer).values()), None)


def _delegate(name: str) -> Any:
    """A property that is the wrapped optimizer's attribute: a copied reference would go stale."""

    def get(self: "ModulatedOptimizer") -> Any:
        return getattr(self.optimizer, name)

    def put(self: "ModulatedOptimizer", value: Any) -> None:
        setattr(self.optimizer, name, value)

    def remove(self: "ModulatedOptimizer") -> None:
        delattr(self.optimizer, name)

    return property(get, put, remove)


class ModulatedOptimizer(Optimizer):
    """An optimizer that balances the gradients of the modalities before each of its steps.

    ``ModulatedOptimizer(torch.optim.AdamW(model.parameters()), modalities, OGM(alpha=0.8))`` takes
    the place of the optimizer inside: schedulers, hooks, closures, ``GradScaler``, copying,
    pickling and checkpoints work as with it. Gradients are balanced as they are when ``step`` is
    called: after unscaling, accumulation and clipping. The state dict is the inner one with a key
    "modgrad" beside; each loads into the other.

    The step of SGD, Adam and AdamW themselves is fused: the update multiplies the weights in, on
    the optimizer's own states, and ``.grad`` stays as it is. Others get scaled gradients.

    Args:
        optimizer: any ``torch.optim.Optimizer``, over all trainable parameters of the modalities.
        modalities, balancer, options: as for ``Modulator``.
        fused: None fuses the step where it can be, True raises where it cannot, False never does.
        apply: "gradient": the weight multiplies the gradient, as in the papers. "update": it
            multiplies the learning rate of the modality's parameters, which Adam does not divide
            out again; needs the fused step, one loss, and weights at the parameters.

    Raises:
        TypeError, ValueError: an argument is not as above; the optimizer is left as it was.
    """

    param_groups = _delegate("param_groups")
    defaults = _delegate("defaults")
    _optimizer_step_pre_hooks = _delegate("_optimizer_step_pre_hooks")
    _optimizer_step_post_hooks = _delegate("_optimizer_step_post_hooks")
    _optimizer_state_dict_pre_hooks = _delegate("_optimizer_state_dict_pre_hooks")
    _optimizer_state_dict_post_hooks = _delegate("_optimizer_state_dict_post_hooks")
    _optimizer_load_state_dict_pre_hooks = _delegate("_optimizer_load_state_dict_pre_hooks")
    _optimizer_load_state_dict_post_hooks = _delegate("_optimizer_load_state_dict_post_hooks")
    grad_scale = _delegate("grad_scale")  # set and deleted by GradScaler
    found_inf = _delegate("found_inf")

    def __init__(
        self,
        optimizer: Optimizer,
        modalities: Modalities,
        balancer: Balancer[Any],
        *,
        fused: bool | None = None,
        apply: Apply = "gradient",
        **options: Unpack[Options],
    ) -> None:
        _check_optimizer(optimizer)
        check_apply(apply)
        if apply == "update" and fused is False:
            raise ValueError("`apply` is 'update' with fused=False, allowed: fused=True or None")
        fused = True if apply == "update" else fused
        reason = why_not(optimizer)
        if fused and reason is not None:
            raise ValueError(f"the step cannot be fused: {reason}")
        # Optimizer.__init__ is not called: it would make param_groups, state and hooks of our own,
        # and fire torch's global step hooks twice a step.
        self.modulator = attach(optimizer, modalities, balancer, **options)
        if apply == "update" and self.modulator.acts_in_backward:
            detach(optimizer)
            raise ValueError(
                "`apply` is 'update', allowed: 'gradient' with several losses or at='boundary',"
                " where gradients come with their weights"
            )
        self.optimizer = optimizer
        self._fused, self._apply = fused, apply
        self._step = FusedStep(optimizer, self.modulator, apply)

    @property
    def fused(self) -> bool:
        """Whether steps are fused: the weights are folded into the update.

        Raises:
            RuntimeError: they were asked for, and the optimizer has changed so that they cannot.
        """
        if self._fused is False:
            return False
        reason = self._step.why_not()
        if self._fused and reason is not None:
            raise RuntimeError(f"the step cannot be fused any more: {reason}")
        return reason is None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``GradScaler`` leaves it to the step to unscale, and to skip where it must.

        Not with dampening: on the host nobody knows then whether momentum has started.
        """
        groups = self.param_groups
        dampened = any(g.get("momentum", 0) != 0 and g.get("dampening", 0) != 0 for g in groups)
        return self.fused and not dampened

    @property
    def state(self) -> Any:
        """The inner optimizer's, which may be changed: moved to the host, for example."""
        if "_step" in self.__dict__:
            self._step.let_go()
        return self.optimizer.state

    @state.setter
    def state(self, value: Any) -> None:
        self.optimizer.state = value

    def observe(self, **observation: Unpack[Observation]) -> None:
        """Show a batch between its forward and ``step``: see ``Modulator.observe``."""
        self.modulator.observe(**observation)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Instead of ``loss.backward()``, with several losses: see ``Modulator.backward``."""
        self.modulator.backward(losses)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Balance the gradients, then step. A closure is run first; its value is returned."""
        if self.fused:
            return self._step(closure)
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        return {**self.optimizer.state_dict(), "modgrad": self.modulator.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state; one of the plain optimizer leaves the balancer's state as it is."""
        inner = {key: value for key, value in state_dict.items() if key != "modgrad"}
        own = state_dict.get("modgrad")
        if own is not None:
            self.modulator.check_state_dict(own)
        self.optimizer.load_state_dict(inner)
        self._step.forget()
        if own is not None:
            self.modulator.load_state_dict(own)

    def __getstate__(self) -> dict[str, Any]:
        names = ("optimizer", "modulator", "_fused", "_apply")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._step = FusedStep(self.optimizer, self.modulator, self._apply)
        # torch's optimizers lose their hooks when they are copied or pickled
        self.optimizer.register_step_pre_hook(_StepHook(self.modulator))

    def __repr__(self) -> str:
        modulator = self.modulator
        parts = f"{modulator.balancer}, {modulator.modalities!r}, {self.optimizer}"
        return f"ModulatedOptimizer({parts})"
