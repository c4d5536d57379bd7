"""Which parameter belongs to which modality."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from modgrad.table import compress, render

Spec: TypeAlias = str | nn.Module | nn.Parameter | Iterable["str | nn.Module | nn.Parameter"]

# What compile, FSDP1 and activation checkpointing insert into a parameter's name.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Assignment(NamedTuple):
    """An optimizer's parameters that belong to modalities, and the index of each one's."""

    parameters: list[nn.Parameter]
    group: list[int]


def canonical(name: str) -> str:
    """A parameter's name without what wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel or DataParallel."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    return model


class Modalities:
    """Names the encoders of a model: each modality, and the parameters that are its own.

    ``Modalities(model, audio="audio_net.*", visual=model.visual_net)``

    A modality is given as a pattern over parameter names (as in a shell; a module's name alone
    means everything below it), a module, parameters, or several of these. Parameters in none are
    shared. What is kept is their names, looked up again whenever the model or the optimizer brings
    other tensors, so that DDP, FSDP2, ``torch.compile`` and Accelerate's ``prepare`` do no harm.

    Args:
        model: holds all the parameters.
        modalities: at least one, in the order that weights and scores will have.

    Raises:
        ValueError: a pattern matches nothing (near names are suggested), a parameter is in two
            modalities or not in the model, a modality is empty.
        TypeError: a modality is given as something else.
    """

    def __init__(self, model: nn.Module, /, **modalities: Spec) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` is {type(model).__name__}, allowed: nn.Module")
        if not modalities:
            raise ValueError("no modalities are given, allowed: at least one keyword argument")
        self._model = _unwrapped(model)
        self._owner: dict[str, int] = {}
        self.names = tuple(modalities)
        for index, (modality, spec) in enumerate(modalities.items()):
            for name in self._resolve(modality, spec):
                if self._owner.setdefault(name, index) != index:
                    other = self.names[self._owner[name]]
                    raise ValueError(f"parameter {name!r} is in `{other}` and in `{modality}`")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters under their canonical names."""
        return {canonical(name): p for name, p in self._model.named_parameters()}

    def _resolve(self, modality: str, spec: Spec) -> list[str]:
        """The names of a modality's parameters."""
        if isinstance(spec, str):
            return self._match(modality, spec)
        if isinstance(spec, nn.Module):
            return self._find(modality, spec.parameters())
        if isinstance(spec, torch.Tensor):
            return self._find(modality, [spec])
        if not isinstance(spec, Iterable) or isinstance(spec, Mapping):
            raise TypeError(
                f"`{modality}` is {type(spec).__name__},"
                " allowed: a pattern, a module, a parameter, or several of these"
            )
        names = [name for item in spec for name in self._resolve(modality, item)]
        if not names:
            raise ValueError(f"`{modality}` has no parameters, allowed: at least one")
        return names

    def _match(self, modality: str, pattern: str) -> list[str]:
        first = {id(p): name for name, p in self.named_parameters().items()}
        known = {  # a tied parameter is found under each of its names
            canonical(name): first[id(p)]
            for name, p in self._model.named_parameters(remove_duplicate=False)
        }
        names = [
            owner
            for name, owner in known.items()
            if fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")
        ]
        if not names:
            modules = [canonical(n) for n, _ in self._model.named_modules() if n]
            near = difflib.get_close_matches(pattern.rstrip(".*"), [*modules, *known], cutoff=0.4)
            hint = (
                f"; near it: {', '.join(near)}"
                if near
                else f"; the model has: {', '.join(list(known)[:5])}, …"
            )
            raise ValueError(f"`{modality}`: pattern {pattern!r} matches no parameter{hint}")
        return names

    def _find(self, modality: str, parameters: Iterable[torch.Tensor]) -> list[str]:
        names = {id(p): name for name, p in self.named_parameters().items()}
        out = []
        for p in parameters:
            if id(p) not in names:
                raise ValueError(
                    f"`{modality}` holds a parameter that is not in the model, of shape"
                    f" {list(p.shape)}"
                )
            out.append(names[id(p)])
        if not out:
            raise ValueError(f"`{modality}` has no parameters, allowed: at least one")
        return out

    def assign(self, held: Sequence[torch.Tensor]) -> Assignment:
        """The parameters of an optimizer that are modalities' own, in the optimizer's order.

        Raises:
            ValueError: a trainable parameter of a modality is not among those held.
        """
        owner = {
            id(p): self._owner[name]
            for name, p in self.named_parameters().items()
            if name in self._owner
        }
        ids = {id(p) for p in held}
        for name, p in self.named_parameters().items():
            if name in self._owner and p.requires_grad and id(p) not in ids:
                raise ValueError(
                    f"the optimizer does not hold {name!r} of `{self.names[self._owner[name]]}`;"
                    " give it all trainable parameters of the modalities, or freeze this one"
                )
        own = [p for p in held if id(p) in owner]
        return Assignment(own, [owner[id(p)] for p in own])  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Modalities({', '.join(self.names)})"

    def __str__(self) -> str:
        """A table of exactly which parameters belong to which modality, and which are shared."""
        parameters = self.named_parameters()
        owner = {name: self._owner.get(name, len(self.names)) for name in parameters}
        rows = []
        for index, label in enumerate([*self.names, "(shared)"]):
            own = {n: p for n, p in parameters.items() if owner[n] == index}
            elements = sum(p.numel() for p in own.values())
            frozen = sum(not p.requires_grad for p in own.values())
            patterns = compress(own, parameters)
            rows.append([label, f"{len(own):,}", f"{elements:,}", f"{frozen:,}", patterns])
        return render(["modality", "tensors", "elements", "frozen", "parameters"], rows)
