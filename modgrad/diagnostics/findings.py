"""What the numbers of a run say, in plain words."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modgrad.diagnostics.conflict import least_cosine, norm_shares
from modgrad.diagnostics.phase import learning_order
from modgrad.diagnostics.run import Run, finite_rows

# of an equal share, 1 / M. On AV-Digits (seeds 0 to 2, epochs 6 to 20) the audio of plainly trained
# networks has 0.21 to 0.34 of it, with MMPareto from epoch 10 on 0.73 to 0.96.
NEGLECTED = 0.5
SURE = 2.0
"""Standard errors by which a contribution has to be below."""
OWN_CEILING = 0.9
"""Of its accuracy alone: a branch above is weak, and not neglected."""
CONFLICT = 0.5
"""Of the steps: gradients that have nothing to do with each other conflict in half of them."""
WAIT = 2.0
"""t_last / t_first from which a unimodal phase is worth a sentence."""


Said = tuple[list[str], list[str]]  # sentences, advice


@dataclass(frozen=True)
class Summary:
    """What a report says."""

    neglected: tuple[str, ...]
    sentences: tuple[str, ...]
    advice: tuple[str, ...]
    table: dict[str, dict[str, float | None]]
    """By quantity and modality; None where it is not known."""


def summarise(run: Run) -> Summary:
    """The findings of a run: what is neglected, how that shows, what could be tried.

    A modality is neglected if its share of the accuracy above guessing is below half of an equal
    share, 1 / (2 M), by two standard errors, unless its branch reaches 90 % of what the modality
    reaches alone (``ceiling``), where that was recorded.

    Raises:
        ValueError: the run knows no modalities.
    """
    names = run.modalities
    if not names:
        raise ValueError("the run has no modalities, allowed: one with steps or an attribution")
    table = _table(run, names)
    neglected, sentences, advice = _contributions(run, table)
    for more in (_utilization, _phase, _conflict, _overfitting):
        said, tried = more(run)
        sentences += said
        advice += tried
    sentences += _broken(run)
    return Summary(tuple(neglected), tuple(sentences), tuple(dict.fromkeys(advice)), table)


def percent(value: float) -> str:
    return f"{round(100 * value)} %"  # never "-0 %"


def shares_of(attribution: Any) -> dict[str, float]:
    """Contributions as parts of the accuracy above the baseline; 0 where there is none."""
    total = attribution["joint"] - attribution["baseline"]
    return {m: a / total if total > 0 else 0.0 for m, a in attribution["accuracy"].items()}


def lost_without(utilization: Any) -> dict[str, float]:
    """Mean over the other branches i of u(m | i), by modality m."""
    rate = utilization["rate"]
    return {m: float(np.mean([row[m] for i, row in rate.items() if i != m])) for m in rate}


def _table(run: Run, names: list[str]) -> dict[str, dict[str, float | None]]:
    def pick(result: Any, key: str | None = None) -> dict[str, float | None]:
        values = (result or {}) if key is None else (result or {}).get(key, {})
        return {m: values.get(m) for m in names}

    attribution, used = run.last("attribution"), run.last("utilization")
    steps = run.header.get("modalities", [])
    _, norms = run.series("grad_sq_norms")
    _, weights = run.series("weights")
    if weights.ndim == 3:  # a weight of each loss
        weights = weights.mean(2)
    rows = {
        "contribution to accuracy": pick(attribution and shares_of(attribution)),
        "accuracy lost without it": pick(used and lost_without(used)),
        "accuracy of its branch": pick(run.last("accuracy")),
        "accuracy of its response": pick(attribution, "response_accuracy"),
        "accuracy alone (ceiling)": pick(run.last("ceiling")),
        "accuracy of a linear probe": pick(run.last("probes"), "accuracy"),
        "share of the gradient norm": _means(steps, names, _shares(norms)),
        "mean weight": _means(steps, names, weights),
        "competition strength": pick(run.last("competition"), "strength"),
        "conditional learning speed": pick(run.last("learning_speed")),
    }
    return {name: row for name, row in rows.items() if any(x is not None for x in row.values())}


def _shares(sq_norms: Any) -> Any:
    """[T, M] of the steps whose norms are finite and not all 0."""
    shares = norm_shares(torch.from_numpy(sq_norms)).numpy()
    return shares[shares.sum(1) > 0] if len(shares) else shares


def _means(measured: list[str], names: list[str], series: Any) -> dict[str, float | None]:
    finite = series[finite_rows(series)]
    means = dict(zip(measured, finite.mean(0).tolist(), strict=True)) if len(finite) else {}
    return {m: means.get(m) for m in names}


def _contributions(
    run: Run, table: dict[str, dict[str, float | None]]
) -> tuple[list[str], list[str], list[str]]:
    attribution = run.last("attribution")
    if attribution is None:
        text = "Whether a modality is neglected cannot be said: the run holds no attribution."
        return [], [text], ["Log `attributions(…)` over held-out samples with `log.record`."]
    total = attribution["joint"] - attribution["baseline"]
    if total <= 0:
        text = f"The network is no better than guessing ({percent(attribution['joint'])}): nothing"
        return [], [f"{text} can be said of its modalities yet."], []
    shares = shares_of(attribution)
    names, limit = list(shares), NEGLECTED / len(shares)
    neglected, sentences, advice = [], [], []
    for m in sorted(names, key=lambda m: shares[m]):
        if shares[m] >= limit:
            continue
        error = np.hypot(attribution["error"][m], attribution["sampling_error"][m]) / total
        sure = shares[m] + SURE * error < limit
        branch, ceiling = _branch(m, table), table.get("accuracy alone (ceiling)", {}).get(m)
        if branch is not None and ceiling is not None and branch >= OWN_CEILING * ceiling:
            text = f"{m} is weak, not neglected: its branch reaches {percent(branch)}, and alone it"
            sentences.append(f"{text} reaches {percent(ceiling)}.")
            continue
        if sure:
            neglected.append(m)
        sentences.append(_neglect(m, "is" if sure else "may be", shares[m], table))
        if not sure:
            advice.append("Evaluate on more samples: the contributions are too close to call.")
        if ceiling is None:
            advice.append(
                f"Train {m} alone and record its accuracy as `ceiling`: if it has little to say,"
                " there is nothing to balance."
            )
        advice.append(
            f"Give {m} a loss of its own beside the joint one (MMPareto, FixedLossWeights), or slow"
            " the others down while it learns (OGM); docs/methods.md compares them."
        )
    if not sentences:
        parts = ", ".join(f"{m} {percent(shares[m])}" for m in names)
        sentences.append(f"No modality is neglected: of the accuracy above guessing, {parts}.")
    return neglected, sentences, advice


def _branch(m: str, table: dict[str, dict[str, float | None]]) -> float | None:
    for name in ("accuracy of its branch", "accuracy of its response"):
        value = table.get(name, {}).get(m)
        if value is not None:
            return value
    return None


def _neglect(m: str, verb: str, share: float, table: dict[str, dict[str, float | None]]) -> str:
    text = f"{m} {verb} neglected: it contributes {percent(share)} of the accuracy above guessing"
    gradient = table.get("share of the gradient norm", {}).get(m)
    if gradient is not None:
        text += f", its encoder receives {percent(gradient)} of the gradient norm"
    branch, ceiling = _branch(m, table), table.get("accuracy alone (ceiling)", {}).get(m)
    if branch is not None and ceiling is not None:
        text += f"; its branch reaches {percent(branch)}, and alone it reaches {percent(ceiling)}"
    probe = table.get("accuracy of a linear probe", {}).get(m)
    if probe is not None:
        text += f"; a linear probe on its features reaches {percent(probe)}"
    return text + "."


def _utilization(run: Run) -> Said:
    used = run.last("utilization")
    if used is None:
        return [], []
    parts = [f"{percent(value)} without {m}" for m, value in lost_without(used).items()]
    return [f"Of its accuracy, the network loses {', '.join(parts)}."], []


def _phase(run: Run) -> Said:
    times, found = run.curve("attribution")
    if len(found) < 4:  # a plateau of one point, and three to get there
        return [], []
    curves = {m: [a["accuracy"][m] for a in found] for m in found[-1]["accuracy"]}
    noise = SURE * max(found[-1]["error"].values())
    phase = learning_order(curves, times, least=noise)
    first, last = phase.order[0], phase.order[-1]
    if phase.half_time[first] == np.inf or phase.ratio < WAIT:
        return [], []
    text = f"{first} was learned first: half of its contribution by step"
    text += f" {phase.half_time[first]:.0f};"
    if phase.length == np.inf:
        return [f"{text} {last} contributes no more than noise to the end."], []
    return [f"{text} {last} reached half of its own {phase.length:.0f} steps later."], []


def _conflict(run: Run) -> Said:
    _, gram = run.series("gram")
    gram = gram[finite_rows(gram)]
    if gram.ndim != 4 or gram.shape[2] < 2 or not len(gram):
        return [], []
    cos = least_cosine(torch.from_numpy(gram)).numpy()
    often = dict(zip(run.header["modalities"], (cos < 0).mean(0).tolist(), strict=True))
    parts = ", ".join(f"{percent(part)} of the steps in {m}" for m, part in often.items())
    advice = (
        "Gradients conflict more often than by chance: MMPareto, PCGrad or CAGrad resolve that."
    )
    return [f"Gradients of two losses conflict in {parts}."], (
        [advice] if max(often.values()) > CONFLICT else []
    )


def _overfitting(run: Run) -> Said:
    found = run.last("overfitting")
    if found is None:
        return [], []
    rose = [head for head, gain in found["generalization"].items() if gain < 0]
    ratios = [f"{head} {ratio:.2g}" for head, ratio in found["ratio"].items() if ratio is not None]
    said = [f"Overfitting to generalization: {', '.join(ratios)}."] if ratios else []
    if not rose:
        return said, []
    said.append(f"The validation loss rose of {', '.join(rose)}.")
    return said, ["Stop earlier or regularise; GradientBlending gives such a head less weight."]


def _broken(run: Run) -> list[str]:
    count = sum(
        any(
            not np.isfinite(np.array(x, dtype=np.float64)).all()
            for k, x in r.items()
            if k != "step"
        )
        for r in run.steps
    )
    text = (
        f"{count} of {len(run.steps)} steps had statistics that were not finite; they are left out."
    )
    return [text] if count else []
