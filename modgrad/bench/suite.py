"""Which cases there are on a device, and how long each is measured."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from modgrad.bench import (
    balancing,
    gradients,
    loss_gradients,
    losses,
    models,
    rules,
    scaling,
    updates,
)
from modgrad.bench.case import Case
from modgrad.bench.optimizer_step import optimizer_step
from modgrad.bench.other_methods import with_other_methods
from modgrad.bench.training_step import training_step

OP, STEP, POINT = 4.0, 35.0, 0.5  # seconds
PAPERS_BATCH = 125.0  # a dozen rounds of as many steps at batch 64
COMPILING = 12.0  # a function of 122 tensors on a CPU
BUILDING = 3.0  # models, gates and counting
OF_PAPERS_BATCH = 25.0  # the same of 35 steps at batch 64
NEEDED_BY_1B = 40e9  # bytes: parameters, gradients, two moments, scaled gradients, spare
_HALF = torch.bfloat16


class Entry(NamedTuple):
    """A case that is not built yet."""

    label: str
    build: Callable[[], Case]
    seconds: float
    compiles: bool = False
    building: float = BUILDING

    @property
    def estimate(self) -> float:
        """Seconds, all in all."""
        return self.building + self.seconds + COMPILING * self.compiles


def entries(device: str, *, quick: bool = False, curves: bool = False) -> list[Entry]:
    """All cases, in the order of the tables. Quick ones are a look, not a result."""
    found = [*_ops(device, quick), *_optimizer_steps(device, quick), *_steps(device, quick)]
    if curves:
        for axis, value, build in scaling.points(device, quick):
            point = partial(scaling.point, axis, value, build, device)
            label = f"scaling, {axis} {value}"
            found.append(Entry(label, point, POINT, building=POINT))
    # on a GPU a round is short
    pace, building = (0.35, 0.5) if device == "cuda" else (1.0, 1.0)
    pace /= 20 if quick else 1
    return [e._replace(seconds=pace * e.seconds, building=building * e.building) for e in found]


def _ops(device: str, quick: bool) -> Iterator[Entry]:
    dtypes = [torch.float32] if device == "cpu" else [torch.float32, _HALF]
    for dtype in dtypes:
        compile_here = dtype is torch.float32 and not quick
        of: dict[str, Any] = {"device": device, "dtype": dtype}
        for shapes in ("1000 small", "2x resnet18"):
            compiled = shapes == "2x resnet18" and compile_here
            for op in (gradients.group_sq_norms, gradients.modulate_):
                build = partial(op, shapes, compiled=compiled, **of)
                yield Entry(f"{op.__name__}, {shapes}", build, OP, compiled)
            for other in (gradients.balance_, loss_gradients.group_gram, loss_gradients.combine_):
                yield Entry(f"{other.__name__}, {shapes}", partial(other, shapes, **of), OP)
            build = partial(loss_gradients.balance_, shapes, **of)
            yield Entry(f"balance_, 3 losses, {shapes}", build, OP)
        for classes in (10, 1000):
            compiled = compile_here and (device == "cuda" or classes == 1000)
            size: dict[str, Any] = {"batch": 64, "classes": classes, "compiled": compiled, **of}
            for loss in (
                losses.modality_scores,
                losses.modality_cross_entropy,
                losses.balanced_cross_entropy,
            ):
                label = f"{loss.__name__}, {classes} classes"
                yield Entry(label, partial(loss, **size), OP / 2, compiled)
        for name in ("ogm", "mmpareto") if dtype is torch.float32 else ():
            yield Entry(f"rule_weights, {name}", partial(rules.rule_weights, name, device), OP / 2)
        build = partial(losses.scale_backward, 64, 512, **of)
        yield Entry("scale_backward", build, OP / 2)
        for method in ("sgd", "adam", "adamw"):
            for shapes in ("1000 small", "2x resnet18"):
                if shapes == "2x resnet18" or method == "adamw":
                    build = partial(updates.modulated_update, method, shapes, **of)
                    yield Entry(f"modulated_{method}_, {shapes}", build, OP)
    build = partial(loss_gradients.aggregation, "2x resnet18", device)
    yield Entry("aggregation, 2x resnet18", build, OP)
    if device == "cuda" and torch.cuda.mem_get_info()[0] > NEEDED_BY_1B and not quick:
        yield Entry("group_sq_norms, 1 B", partial(gradients.group_sq_norms, "1 B", device), OP)
        build = partial(updates.modulated_update, "adamw", "1 B", device)
        yield Entry("modulated_adamw_, 1 B", build, OP)


def _optimizer_steps(device: str, quick: bool) -> Iterator[Entry]:
    for shapes in ("1000 small",) if quick else ("1000 small", "10000 small"):
        yield Entry(f"optimizer step, {shapes}", partial(optimizer_step, shapes, device), 4 * OP)


def _steps(device: str, quick: bool) -> Iterator[Entry]:
    gpu = device == "cuda"
    size = (64, 224) if gpu else (4, 64) if quick else (64, 64)
    pair = (64, 224, 384, 12) if gpu else (4, 32, 64, 1) if quick else (16, 112, 192, 6)
    trio = (64, 256, 6) if gpu else (4, 64, 1) if quick else (32, 128, 3)

    def audio_visual() -> Case:
        setting = models.audio_visual(device, *size)
        return with_other_methods(training_step(setting, "sgd", not quick), setting)

    def vision_language() -> Case:
        return training_step(models.vision_language(device, *pair), "adamw", not quick)

    def three_modalities() -> Case:
        return training_step(models.three_modalities(device, *trio), "adamw", not quick)

    of_papers = BUILDING if quick else OF_PAPERS_BATCH
    yield Entry("training step, 2x resnet18", audio_visual, PAPERS_BATCH, not quick, of_papers)
    yield Entry("training step, ViT + BERT", vision_language, STEP, not quick)
    yield Entry("training step, 3 transformers", three_modalities, STEP, not quick)
    small = size if gpu else (4, 64)
    for build in (balancing.one_loss, balancing.three_losses):
        name = build.__name__.replace("_", " ")

        def balancers(build: Callable[[models.Setting], Case] = build) -> Case:
            return build(models.audio_visual(device, *small))

        yield Entry(f"balancers of {name}", balancers, STEP)
