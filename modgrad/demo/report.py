"""The table on the screen."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from modgrad.demo.cross_modal import CrossModalNetwork
from modgrad.demo.methods import ALONE, BALANCED, PLAIN
from modgrad.demo.results import Results, Spread
from modgrad.demo.summary import sentence

OUTPUTS = ("joint", *ALONE)


def show(results: Results, console: Console) -> None:
    console.print(_table(results))
    text = sentence(results.accuracy(), results.options.balancers)
    console.print(f"\n{text}\n", highlight=False)


def _table(results: Results) -> Table:
    options = results.options
    out = Table(
        title=f"AV-Digits, image noise {options.image_noise:g}: test accuracy in %,"
        f" {_plural(options.epochs, 'epoch')}, {_plural(options.seeds, 'seed')}",
        caption=_caption(results),
        box=SIMPLE,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    out.add_column("method")
    for header in (*OUTPUTS, "ms a step", "overhead"):
        out.add_column(header, justify="right", no_wrap=True)
    for method, accuracy in results.accuracy().items():
        timing = results.timings.get(method)
        out.add_row(
            "plain training" if method == PLAIN else method,
            *(_cell(accuracy[output]) if output in accuracy else "" for output in OUTPUTS),
            f"{timing.median_ms:.2f}" if timing else "",
            f"{100 * timing.overhead:+.0f} %" if timing and method != PLAIN else "",
            end_section=method == list(ALONE.values())[-1],
        )
    return out


def _cell(value: Spread) -> str:
    mean = f"{100 * value.mean:.1f}"
    return mean if value.std is None else f"{mean} ± {100 * value.std:.1f}"


def _caption(results: Results) -> str:
    options = results.options
    definitions = [_definition(name) for name in options.balancers]
    spread = ["±: standard deviation over the seeds"] if options.seeds > 1 else []
    rounds = results.timings[PLAIN].rounds
    return "\n".join(
        [
            *definitions,
            "audio alone, visual alone: trained without the other, the branch's ceiling",
            "audio, visual: accuracy of that branch, by splitting the head",
            *spread,
            f"ms a step: median of {rounds}, backend {results.backend}",
            "overhead: median ratio to a plain step, measured side by side",
        ]
    )


def _definition(name: str) -> str:
    method = BALANCED[name]
    if method.network is not CrossModalNetwork:
        return f"{name}: {method.balancer}"
    how = "trained plainly" if method.balancer is None else f"with {method.balancer}"
    return f"{name}: another network, whose branches gate each other, {how}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
