"""A case: providers of one result, and the check that they agree."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from modgrad.backends import why_not

AGAIN = " again"
COMPILED = ", compiled"
Kind = Literal["op", "optimizer step", "training step", "balancer", "scaling"]


@dataclass
class Case:
    """Providers of one result, the first of which the others are divided by."""

    name: str
    providers: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    """Raises AssertionError where two providers disagree; called before any of them is timed."""
    config: dict[str, Any]
    kind: Kind = "op"
    bytes: int | None = None
    """That have to move at least once; None where no floor is meaningful."""
    cold: bool = False
    """Whether the caches are emptied before every call, as they are where backward ends."""
    missing: dict[str, str] = field(default_factory=dict)
    """Providers that cannot run here, and why."""

    def timed(self) -> dict[str, Callable[[], Any]]:
        """The providers, and the first a second time: how far equal things are apart."""
        first, provider = next(iter(self.providers.items()))
        return {first: provider, first + AGAIN: provider, **self.providers}


def kernels(device: str) -> list[str]:
    """The backends worth timing: not Triton's interpreter."""
    usable = [name for name, reason in why_not(device).items() if reason is None]
    return [name for name in usable if device == "cuda" or name != "triton"]


def launches(
    device: str, run: Callable[[], Any], name: str = "modgrad, native"
) -> dict[str, Callable[[], Any]]:
    """``run`` by native kernels, in one cooperative launch and in parts, instead of the default."""

    def told(choice: str) -> Any:
        os.environ["MODGRAD_COOPERATIVE"] = choice
        try:
            return run()
        finally:
            del os.environ["MODGRAD_COOPERATIVE"]

    if device != "cuda" or "native" not in kernels(device):
        return {}
    return {
        f"{name}, one launch": partial(told, "1"),
        f"{name}, in parts": partial(told, "0"),
    }
