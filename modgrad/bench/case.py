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


def both_launches(run: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """An op of the native backend in one cooperative launch, and in some, whatever it would do."""

    def launched(choice: str) -> None:
        os.environ["MODGRAD_COOPERATIVE"] = choice
        run()
        del os.environ["MODGRAD_COOPERATIVE"]

    return {"one launch": partial(launched, "1"), "in parts": partial(launched, "0")}


def kernels(device: str) -> list[str]:
    """The backends worth timing: not Triton's interpreter."""
    usable = [name for name, reason in why_not(device).items() if reason is None]
    return [name for name in usable if device == "cuda" or name != "triton"]
