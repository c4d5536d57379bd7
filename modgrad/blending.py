"""What Gradient Blending weights come from: each head trained alone for a while, and measured."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from modgrad.balancers import GradientBlending, blending_weights
from modgrad.distributed import mean_over_ranks
from modgrad.gradients import mean_over_ranks_
from modgrad.observation import in_order
from modgrad.optimizer import ModulatedOptimizer
from modgrad.snapshot import generators_of, rng_state, set_rng_state, unchanged

LossFunction: TypeAlias = Callable[[nn.Module, Any], Mapping[str, Tensor]]

_log = logging.getLogger("modgrad")


class BlendEstimate(NamedTuple):
    """What an estimate found, by the names of the losses."""

    epoch: int  # as told to ``Modulator.set_epoch``
    step: int  # modulated steps before it
    gain: dict[str, float]  # G: the fall of the held-out loss
    overfitting: dict[str, float]  # O: the growth of held-out minus training loss
    floored: dict[str, bool]  # whether O was below the floor, which stood in for it
    weights: dict[str, float]


def batch_size(batch: Any) -> int:
    """The length of the first tensor in a batch of nested mappings and sequences."""

    def lengths(part: Any) -> Iterator[int]:
        if isinstance(part, Tensor):
            yield from part.shape[:1]
        elif isinstance(part, Mapping):
            part = list(part.values())
        if isinstance(part, Sequence) and not isinstance(part, (str, bytes)):
            for item in part:
                yield from lengths(item)

    size = next(lengths(batch), None)
    if size is None:
        raise TypeError(f"a batch is {type(batch).__name__}, allowed: one with tensors [B, ...]")
    return size


class BlendEstimator:
    """Sets the weights of ``GradientBlending``: what each head gains, against its overfitting.

    ``estimate()`` trains each head alone, its loss and the encoders that it reaches, for `epochs`
    epochs from where the model is. With L^T, L^V the mean training and held-out losses of a head:

        G = L^V(start) - L^V(end),   O = (L^V - L^T)(end) - (L^V - L^T)(start)
        w_k = max(G_k, 0) / max(O_k, eps L^T_k(start))^2,  divided by their sum

    Then all is as it was: parameters, buffers, optimizer, scheduler, random numbers, training
    modes, gradients, after an exception too. What modules keep besides parameters and buffers, and
    loaders' own random numbers other than ``DataLoader(generator=...)``, are not put back.

    Offline, one estimate over the epochs of the whole run; online, one before every super-epoch.
    It costs K trainings of `epochs` epochs, K = M + 1, and memory for one more model and optimizer
    state.

    Args:
        model: as `loss_function` gets it. It trains in the mode it is found in, or after
            ``model.train()`` where that is evaluation; it is measured after ``model.eval()``.
        optimizer: its balancer is a ``GradientBlending``. ``step`` is called without a closure.
        loss_function: from model and batch to the mean loss over the batch of each name in
            ``optimizer.modulator.losses``.
        train: batches of the training set, without those held out. Its first ones, until as many
            samples as held out, are the part L^T is measured on: the same each time, since random
            numbers are put back.
        held_out: batches of a part of the training set that is never trained on. Not of the test
            set, which the weights would be fitted to.
        epochs: of each head's training.
        scheduler: of `optimizer`; its ``step()`` is called after every `scheduler_unit`.
        eps: floor of O, relative to the training loss at the start. With 400 samples of each part,
            O has a standard error of about 0.05: what is below says little, and 1 / O^2 explodes.
        batch_size: of a batch, where that is not the length of its first tensor.
        progress: a bar, where rich is installed; it wants the terminal for itself.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: ModulatedOptimizer,
        loss_function: LossFunction,
        train: Iterable[Any],
        held_out: Iterable[Any],
        *,
        epochs: int,
        scheduler: LRScheduler | None = None,
        scheduler_unit: Literal["epoch", "batch"] = "epoch",
        eps: float = 0.05,
        batch_size: Callable[[Any], int] = batch_size,
        progress: bool = True,
    ) -> None:
        if not isinstance(optimizer, ModulatedOptimizer):
            raise TypeError(
                f"`optimizer` is {type(optimizer).__name__}, allowed: ModulatedOptimizer"
            )
        if not isinstance(optimizer.modulator.balancer, GradientBlending):
            found = type(optimizer.modulator.balancer).__name__
            raise TypeError(f"`optimizer` has balancer {found}, allowed: GradientBlending")
        for name, loader in (("train", train), ("held_out", held_out)):
            if isinstance(loader, Iterator):
                raise TypeError(
                    f"`{name}` is an iterator, allowed: what can be iterated many times"
                )
        if epochs < 1:
            raise ValueError(f"`epochs` is {epochs}, allowed: at least 1")
        if not 0 <= eps < 1:
            raise ValueError(f"`eps` is {eps}, allowed: [0, 1)")
        if scheduler_unit not in ("epoch", "batch"):
            raise ValueError(f"`scheduler_unit` is {scheduler_unit!r}, allowed: 'epoch', 'batch'")
        self.model, self.optimizer, self.loss_function = model, optimizer, loss_function
        self.train, self.held_out, self.epochs = train, held_out, epochs
        self.scheduler, self.scheduler_unit = scheduler, scheduler_unit
        self.eps, self.batch_size, self.progress = eps, batch_size, progress
        self.history: list[BlendEstimate] = []
        self._begun: dict[str, Any] | None = None  # step, rng, and losses [2, K] of start and ends

    def estimate(self, after_head: Callable[[], object] | None = None) -> BlendEstimate:
        """Measure, and put new weights into ``optimizer.modulator.state``.

        An estimate that ended early, here or in the process that ``state_dict`` is from, goes on
        with the next head, unless steps were trained since; the result is the same.

        Args:
            after_head: called after each head, when all is as it was at the start: the place to
                save a checkpoint, of this estimator too.
        """
        modulator = self.optimizer.modulator
        generators = generators_of((self.train, self.held_out))
        step = int(modulator.state_dict()["step"])
        if self._begun is not None and self._begun["step"] == step:
            set_rng_state(self._begun["rng"], generators)
        else:
            self._begun = {"step": step, "rng": rng_state(generators), "losses": []}
        rng, losses = self._begun["rng"], self._begun["losses"]
        enabled = modulator.enabled
        try:
            modulator.enabled = False
            with (
                unchanged(self.model, self.optimizer, self.scheduler, generators) as rewind,
                _bar(len(modulator.losses) * self.epochs, self.progress) as report,
            ):
                if not losses:
                    losses.append(self._measure(rng, generators))
                for name in modulator.losses[len(losses) - 1 :]:
                    rewind()
                    self._train(name, report)
                    losses.append(self._measure(rng, generators))
                    rewind()
                    if after_head is not None:
                        after_head()
        finally:
            modulator.enabled = enabled
        result = self._finish(step, losses)
        self._begun = None
        return result

    def _train(self, name: str, report: Callable[[str], None]) -> None:
        """One loss alone: what it does not reach has no gradient, and stays as it is."""
        if not self.model.training:
            self.model.train()
        for epoch in range(1, self.epochs + 1):
            report(f"{name} alone, epoch {epoch}/{self.epochs}")
            for batch in self.train:
                self.optimizer.zero_grad()
                self._backward(name, batch)
                self.optimizer.step()
                if self.scheduler is not None and self.scheduler_unit == "batch":
                    self.scheduler.step()
            if self.scheduler is not None and self.scheduler_unit == "epoch":
                self.scheduler.step()

    def _backward(self, name: str, batch: Any) -> None:
        if not isinstance(self.model, DistributedDataParallel):
            self._losses(batch)[name].backward()
            return
        with self.model.no_sync():  # it would wait for what one head does not reach
            self._losses(batch)[name].backward()
        grads = [p.grad for p in self.model.parameters()]
        mean_over_ranks_(grads, self.optimizer.modulator.process_group)

    def _losses(self, batch: Any) -> dict[str, Tensor]:
        losses = self.loss_function(self.model, batch)
        return in_order("losses", losses, self.optimizer.modulator.losses)

    @torch.no_grad()
    def _measure(self, rng: dict[str, Any], generators: list[torch.Generator]) -> Tensor:
        """Mean training and held-out losses, float64 [2, K], as seen from one random state."""
        self.model.eval()
        set_rng_state(rng, generators)
        held_out, count = self._means("held_out", self.held_out)
        train, _ = self._means("train", self.train, count)
        return torch.stack([train, held_out])

    def _means(self, name: str, loader: Iterable[Any], limit: int = -1) -> tuple[Tensor, int]:
        """Over the first batches with at least `limit` samples; the sum stays on the device."""
        total, count = torch.zeros(()), 0
        for batch in loader:
            size = self.batch_size(batch)
            losses = torch.stack([x.reshape(()) for x in self._losses(batch).values()])
            total, count = total.to(losses.device) + size * losses.double(), count + size
            if 0 <= limit <= count:
                break
        if count == 0:
            raise ValueError(f"`{name}` has no samples, allowed: at least one")
        return mean_over_ranks(total, count, self.optimizer.modulator.process_group), count

    def _finish(self, step: int, losses: list[Tensor]) -> BlendEstimate:
        modulator = self.optimizer.modulator
        previous = modulator.state.weights
        first, *ends = (each.to(previous.device) for each in losses)
        last = torch.stack([end[:, k] for k, end in enumerate(ends)], 1)
        gain = first[1] - last[1]
        overfitting = (last[1] - last[0]) - (first[1] - first[0])
        floor = self.eps * first[0]
        weights = blending_weights(gain, overfitting, floor, previous)
        modulator.state = modulator.state._replace(weights=weights)
        rows = torch.stack([gain, overfitting, (overfitting < floor).double(), weights]).tolist()
        epoch, names = int(modulator.state_dict()["epoch"]), modulator.losses
        gains, gaps, low, new = (dict(zip(names, row, strict=True)) for row in rows)
        floored = {name: value > 0 for name, value in low.items()}
        for name in names:
            note = ", floored" if floored[name] else ""
            numbers = new[name], name, gains[name], gaps[name], note
            _log.info("epoch %d: weight %.3g of %s (G %.3g, O %.3g%s)", epoch, *numbers)
        if new[names[0]] == 0:
            _log.warning("weight 0 leaves the head of %s untrained: predict with another", names[0])
        self.history.append(BlendEstimate(epoch, step, gains, gaps, floored, new))
        return self.history[-1]

    def state_dict(self) -> dict[str, Any]:
        """The history, and what is done of an estimate: plain containers and tensors."""
        begun = self._begun
        if begun is not None:
            begun = {**begun, "losses": [t.clone() for t in begun["losses"]]}
        return {"history": [estimate._asdict() for estimate in self.history], "begun": begun}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another estimator of the same losses, model and loaders stopped."""
        if set(state_dict) != {"history", "begun"}:
            raise ValueError(
                f"`state_dict` has {sorted(state_dict)}, allowed: ['begun', 'history']"
            )
        begun, K = state_dict["begun"], len(self.optimizer.modulator.losses)
        if begun is not None:
            for losses in begun["losses"]:
                if list(losses.shape) != [2, K]:
                    raise ValueError(
                        f"`state_dict` holds losses {list(losses.shape)}, allowed: {[2, K]}"
                    )
            begun = {**begun, "losses": [t.clone() for t in begun["losses"]]}
        self.history = [BlendEstimate(**estimate) for estimate in state_dict["history"]]
        self._begun = begun


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """What is told of every epoch that begins."""
    if not shown or find_spec("rich") is None:
        yield lambda text: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        done = iter(range(total))
        yield lambda text: progress.update(task, completed=next(done), description=text)
