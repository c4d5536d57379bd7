"""A GradScaler that looks for infinities by reading the gradients once, and writes none."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modgrad import ops
from modgrad.optimizer import ModulatedOptimizer


class GradScaler(torch.amp.GradScaler):
    """``torch.amp.GradScaler``, quicker with the fused steps of ``ModulatedOptimizer``.

    torch's reads every gradient and writes it again, unchanged, before the step. This one reads it:
    a sum of squares in float64 is finite exactly where all elements are (below 1e154, for float64).
    The step then unscales, modulates and updates in its one pass, or skips, on the device. Scales,
    ``unscale_`` and every other optimizer are as with torch's; so is the checkpoint.
    """

    @torch.no_grad()
    def _check_inf_per_device(self, optimizer: Optimizer) -> dict[str, Any]:
        if not isinstance(optimizer, ModulatedOptimizer) or not optimizer.fused:
            return super()._check_inf_per_device(optimizer)
        self._check_scale_growth_tracker("_check_inf_per_device")
        grads: dict[torch.device, list[Tensor]] = {}
        for p in optimizer.modulator.held:
            if p.grad is not None:
                grads.setdefault(p.grad.device, []).append(p.grad)
        found: dict[Any, Tensor] = {}
        for device, values in grads.items():
            backend = optimizer.modulator.backend
            total = ops.group_sq_norms(values, [0] * len(values), 1, backend=backend)
            found[device] = (~total[0].isfinite()).float()
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = found
        return found
