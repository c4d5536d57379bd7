"""What the numbers say, in one sentence."""

import math
from collections.abc import Mapping, Sequence

from modgrad.demo.methods import ALONE, PLAIN
from modgrad.demo.results import Spread

MANY = 4  # balancers that a sentence and a group of bars can hold

Accuracy = Mapping[str, Mapping[str, Spread]]


def lost(accuracy: Accuracy) -> str:
    """The modality whose branch is furthest below its ceiling after plain joint training."""
    return max(ALONE, key=lambda m: accuracy[ALONE[m]][m].mean - accuracy[PLAIN][m].mean)


def sentence(accuracy: Accuracy, balancers: Sequence[str]) -> str:
    """Which modality plain training neglects, and what each balancer changes about it.

    A difference is called one where it exceeds a point and both standard deviations together.
    """
    modality = lost(accuracy)
    plain, ceiling = accuracy[PLAIN][modality], accuracy[ALONE[modality]][modality]
    numbers = f"{_percent(plain)} where the same encoder trained alone reaches {_percent(ceiling)}"
    if _change(plain, ceiling) <= 0:
        text = f"Plain joint training neglects neither modality clearly: the {modality} branch"
        text += f", the furthest from its ceiling, reaches {numbers}"
    else:
        text = f"Plain joint training neglects the {modality}: its branch reaches {numbers}"
        named = balancers if len(balancers) <= MANY else _best(accuracy, balancers)
        effects = [f"{name} {_effect(accuracy, name, modality)}" for name in named]
        if len(named) < len(balancers):
            text += f". Of {len(balancers)} methods, the best three jointly: {effects.pop(0)}"
        text = "; ".join([text, *effects])
    single = plain.std is None
    return text + (" (one seed only: such differences may be chance)." if single else ".")


def _best(accuracy: Accuracy, balancers: Sequence[str]) -> list[str]:
    return sorted(balancers, key=lambda name: -accuracy[name]["joint"].mean)[:3]


def _effect(accuracy: Accuracy, balancer: str, modality: str) -> str:
    """Of one balancer: on the neglected branch, the joint prediction, and the other branch."""
    plain, balanced = accuracy[PLAIN], accuracy[balancer]
    own = _change(plain[modality], balanced[modality])
    if own > 0:
        gap = accuracy[ALONE[modality]][modality].mean - plain[modality].mean
        effect = f"recovers {100 * own / gap:.0f} % of that gap"
    elif own < 0:
        effect = f"widens that gap by {-100 * own:.1f} points"
    else:
        effect = "does not clearly narrow that gap"

    joint = _change(plain["joint"], balanced["joint"])
    if joint:
        verb = "raises" if joint > 0 else "lowers"
        effect += f" and {verb} the joint accuracy by {abs(100 * joint):.1f} points"
    else:
        effect += " and makes no clear difference to the joint accuracy"

    (other,) = set(ALONE) - {modality}
    cost = _change(plain[other], balanced[other])
    if cost < 0:
        effect += f", while the {other} branch loses {-100 * cost:.1f} points"
    return effect


def _change(before: Spread, after: Spread) -> float:
    """The difference of the means, 0 where the seeds do not show one."""
    difference = after.mean - before.mean
    noise = math.hypot(before.std or 0, after.std or 0)
    return difference if abs(difference) > max(0.01, noise) else 0.0


def _percent(value: Spread) -> str:
    return f"{100 * value.mean:.1f} %"
