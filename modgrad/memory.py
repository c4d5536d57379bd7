"""What a modulator remembers from step to step, and saves."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modgrad.balancers.base import map_state, state_tensors

# 2^64 over the golden ratio, as a signed number: seeds of successive steps share no pattern.
_SEED_STRIDE = 0x9E3779B97F4A7C15 - 2**64


class Memory:
    """The balancer's state, the number of modulated steps, the epoch, the seed of the noise.

    They stay the same tensors and are refilled: a captured CUDA graph reads and writes those that
    it met.
    """

    def __init__(
        self, modalities: tuple[str, ...], state: Any, seed: int, device: torch.device
    ) -> None:
        self._modalities = modalities
        self._state = map_state(torch.clone, state)  # no two places in one memory
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)
        self.seed = torch.tensor(seed, dtype=torch.int64, device=device)

    @property
    def state(self) -> Any:
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        found, allowed = _shapes(state_tensors(state)), _shapes(state_tensors(self._state))
        if found != allowed:
            raise ValueError(f"`state` holds {found}, allowed: {allowed}")
        map_state(Tensor.copy_, self._state, state)

    def follow(self, device: torch.device) -> bool:
        """Move to where the parameters are now; whether that is elsewhere."""
        if self.step.device == device:
            return False
        self._state = map_state(lambda t: t.to(device), self._state)
        for name in ("step", "epoch", "seed"):
            setattr(self, name, getattr(self, name).to(device))
        return True

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def seed_of_step(self) -> Tensor:
        return self.seed + self.step * _SEED_STRIDE

    def advance(self, state: Any, skipped: Tensor | None) -> None:
        """After a step; where ``skipped`` is not 0, all stays as it was."""
        old, new = (list(state_tensors(s).values()) for s in (self._state, state))
        changed = [(a, b) for a, b in zip(old, new, strict=True) if a is not b]
        if skipped is None:
            # a state may move its own tensors to other places: past a copy
            own = {t.untyped_storage()._cdata for t in old}
            values = [b.clone() if b.untyped_storage()._cdata in own else b for _, b in changed]
        else:
            keep = skipped.to(self.step.device).reshape(()) != 0
            values = [torch.where(keep, a, b) for a, b in changed]
        if changed:
            torch._foreach_copy_([a for a, _ in changed], values)
        self.step.add_(1 if skipped is None else ~keep)  # last: a state may be the step

    def check(self, state: Any) -> None:
        """Raise ValueError where a balancer's new state could not be kept."""
        old, new = (state_tensors(s) for s in (self._state, state))
        for name, tensor in old.items():
            found = new[name]
            if found is not tensor and (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(
                    f"the new state's `{name}` is {found.dtype} {list(found.shape)},"
                    f" allowed: what it was, {tensor.dtype} {list(tensor.shape)}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {
            "modalities": list(self._modalities),
            "step": self.step.clone(),
            "epoch": self.epoch.clone(),
            "seed": self.seed.clone(),
            "balancer": {k: v.clone() for k, v in state_tensors(self._state).items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state of the same modalities and balancer; an error changes nothing."""
        self.check_state_dict(state_dict)
        for name in ("step", "epoch", "seed"):
            getattr(self, name).copy_(state_dict[name])
        for name, tensor in state_tensors(self._state).items():
            tensor.copy_(state_dict["balancer"][name])

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ValueError where ``load_state_dict`` could not take this state."""
        keys = set(self.state_dict())
        if set(state_dict) != keys:
            raise ValueError(f"`state_dict` has {sorted(state_dict)}, allowed: {sorted(keys)}")
        modalities = state_dict["modalities"]
        if modalities not in (list(self._modalities), self._modalities):
            allowed = list(self._modalities)
            raise ValueError(f"`state_dict` is of modalities {modalities}, allowed: {allowed}")
        for name in ("step", "epoch", "seed"):
            value = state_dict[name]
            if not isinstance(value, Tensor) or value.shape != ():
                raise ValueError(f"`state_dict[{name!r}]` is {value}, allowed: a tensor []")
        found, own = _shapes(state_dict["balancer"]), _shapes(state_tensors(self._state))
        if found != own:
            raise ValueError(f"`state_dict` holds balancer state {found}, allowed: {own}")


def _shapes(tensors: Any) -> Any:
    """Of tensors by name; what is none of that stays as it is."""
    if not isinstance(tensors, Mapping):
        return tensors
    return {name: list(t.shape) if isinstance(t, Tensor) else t for name, t in tensors.items()}
