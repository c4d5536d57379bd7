"""Everything that training changes, to be put back bit for bit."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def rng_state(generators: Iterable[torch.Generator]) -> dict[str, Any]:
    """Of Python, numpy, torch on the CPU and on CUDA where in use, and the given generators."""
    kind, keys, *rest = tuple(np.random.get_state())
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),  # plain values: torch.load takes them
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "generators": [generator.get_state() for generator in generators],
    }


def set_rng_state(state: dict[str, Any], generators: Iterable[torch.Generator]) -> None:
    """Undo what was drawn since ``rng_state``."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())  # wherever a checkpoint was loaded to
    if state["cuda"]:
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
    for generator, value in zip(generators, state["generators"], strict=True):
        generator.set_state(value.cpu())


def generators_of(loaders: Iterable[Any]) -> list[torch.Generator]:
    """The generators that ``DataLoader``s and their samplers draw from, each once."""
    owners = [owner for x in loaders for owner in (x, getattr(x, "sampler", None))]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def unchanged(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    generators: list[torch.Generator],
) -> Iterator[Callable[[], None]]:
    """A place to train in that leaves no trace; yields what goes back to the start in between.

    Put back, after an exception too: parameters, buffers, the optimizer's state and groups, the
    scheduler, random numbers, each module's training mode and the gradients. In between, gradients
    are None. The memory is one copy of parameters, buffers and the optimizer's state.
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers(), *held)}
    values = [(t, t.detach().clone()) for t in tensors.values()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    modes = [(module, module.training) for module in model.modules()]
    grads = [(t, t.grad) for t in tensors.values() if t.is_leaf]
    state = {p: copy.deepcopy(value) for p, value in optimizer.state.items()}
    groups = [
        (group, {key: copy.deepcopy(group[key]) for key in group if key != "params"})
        for group in optimizer.param_groups
    ]
    schedule = None if scheduler is None else copy.deepcopy(scheduler.state_dict())
    rng = rng_state(generators)

    def rewind() -> None:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for live, original in buffers:  # a module may have put another tensor in place of one
            live.clear()
            live.update(original)
        for module, mode in modes:
            module.training = mode
        for tensor, _ in grads:
            tensor.grad = None
        optimizer.state.clear()
        optimizer.state.update((p, copy.deepcopy(value)) for p, value in state.items())
        for group, saved in groups:
            for key in group.keys() - saved.keys() - {"params"}:
                del group[key]
            group.update(copy.deepcopy(saved))
        if scheduler is not None:
            scheduler.load_state_dict(copy.deepcopy(schedule))  # type: ignore[arg-type]
        set_rng_state(rng, generators)

    try:
        for tensor, _ in grads:
            tensor.grad = None
        yield rewind
    finally:
        rewind()
        for tensor, grad in grads:
            tensor.grad = grad
