"""The estimate behind Gradient Blending: what it measures, and that it leaves no trace."""

import copy
import io
import logging
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from modgrad import (
    BlendEstimator,
    FixedWeights,
    GradientBlending,
    Modalities,
    ModulatedOptimizer,
    blending,
)

LOSSES = ("joint", "audio", "visual")


class Net(nn.Module):
    """With all that training changes: batch norm, dropout, a buffer that is another every time."""

    def __init__(self):
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.visual = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.heads = nn.ModuleDict({"joint": nn.Linear(12, 3), "audio": nn.Linear(6, 3)})
        self.heads["visual"] = nn.Linear(6, 3)
        self.frozen = nn.BatchNorm1d(4, affine=False).eval()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, audio, visual):
        if self.training:
            self.calls = self.calls + 1
        a, v = self.audio(self.frozen(audio)), self.visual(visual)
        features = {"joint": torch.cat([a, v], 1), "audio": a, "visual": v}
        return {name: self.heads[name](x) for name, x in features.items()}


def losses_of(model, batch):
    *inputs, target, _ = batch
    if model.training:  # augmentation from every source of random numbers
        noise = random.random() + np.random.random() + torch.rand(())
        inputs[0] = inputs[0] + 0.1 * noise
    return {name: F.cross_entropy(z, target) for name, z in model(*inputs).items()}


def data(number, first, generator):
    target = torch.randint(3, (number,), generator=generator)
    audio = torch.randn(number, 4, generator=generator) + target[:, None]
    visual = torch.randn(number, 3, generator=generator)
    return TensorDataset(audio, visual, target, torch.arange(first, first + number))


def reseed(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


class World:
    """A training run that has begun; two of one seed are equal in every bit."""

    def __init__(self, seed=0, loss_function=losses_of):
        reseed(seed)
        self.model = Net()
        modalities = Modalities(self.model, audio="audio", visual="visual")
        lr = torch.tensor(0.1)  # schedulers change it in place
        sgd = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
        self.optimizer = ModulatedOptimizer(
            sgd, modalities, GradientBlending((0.5, 0.3, 0.2)), losses=LOSSES, backend="reference"
        )
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        self.order = torch.Generator().manual_seed(seed)
        fixed = torch.Generator().manual_seed(7)
        parts = data(22, 0, fixed), data(10, 100, fixed)
        self.train = DataLoader(parts[0], 5, shuffle=True, generator=self.order)
        self.held_out = DataLoader(parts[1], 4)
        self.epoch()
        self.estimator = BlendEstimator(
            self.model,
            self.optimizer,
            loss_function,
            self.train,
            self.held_out,
            epochs=2,
            scheduler=self.scheduler,
            progress=False,
        )

    def epoch(self):
        reseed(5)  # twins train one after the other
        for batch in self.train:
            self.optimizer.zero_grad()
            self.optimizer.backward(losses_of(self.model, batch))
            self.optimizer.step()
        self.scheduler.step()

    def everything(self):
        return {
            "model": self.model.state_dict(),
            "calls": self.model.calls,
            "modes": [module.training for module in self.model.modules()],
            "grads": [p.grad for p in self.model.parameters()],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "enabled": self.optimizer.modulator.enabled,
            "rng": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
            "order": self.order.get_state(),
        }

    def load(self, saved):
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.estimator.load_state_dict(saved["estimator"])


def assert_same(a, b, where=""):
    """Equal in every bit, through nested containers."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert (a == b).all(), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


def set_weights(world, weights):
    modulator = world.optimizer.modulator
    modulator.state = modulator.state._replace(weights=weights)


def test_all_but_the_weights_is_as_before():
    world, twin = World(), World()
    world.estimator.estimate()
    weights = world.optimizer.modulator.state.weights.clone()
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert not torch.equal(weights, twin.optimizer.modulator.state.weights)
    set_weights(twin, weights)
    assert_same(world.everything(), twin.everything())
    world.epoch()
    twin.epoch()
    assert_same(world.everything(), twin.everything())


class StoppedError(Exception):
    pass


def stopping_at(call, error):
    """``losses_of`` that raises in the call of that number."""
    calls = iter(range(10**6))

    def losses(model, batch):
        if next(calls) == call:
            raise error
        return losses_of(model, batch)

    return losses


# an estimate measures 3 held-out and 2 training batches, trains 2 x 5, and measures 5, thrice
@pytest.mark.parametrize("call", [0, 4, 5, 12, 17, 22, 49])
@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt])
def test_an_exception_leaves_no_trace_either(call, error):
    world, twin = World(loss_function=stopping_at(call, error)), World()
    with pytest.raises(error):
        world.estimator.estimate()
    assert_same(world.everything(), twin.everything())
    assert world.estimator.history == []
    # goes on with the next head, to the same end
    found, expected = world.estimator.estimate(), twin.estimator.estimate()
    assert found == expected
    assert_same(world.everything(), twin.everything())


def test_estimate_has_no_more_calls_than_the_rows_above():
    assert World(loss_function=stopping_at(50, StoppedError)).estimator.estimate()
    with pytest.raises(StoppedError):
        World(loss_function=stopping_at(49, StoppedError)).estimator.estimate()


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_killed_estimate_resumes_in_another_process(heads):
    """From the checkpoint of ``after_head``, into a world where all is different."""
    world, files = World(), []

    def checkpoint():
        saved = world.everything() | {"estimator": world.estimator.state_dict()}
        files.append(io.BytesIO())
        torch.save(
            {k: saved[k] for k in ("model", "optimizer", "scheduler", "estimator")}, files[-1]
        )
        files[-1].seek(0)

    expected = world.estimator.estimate(after_head=checkpoint)
    ours = world.everything()
    assert len(files) == 3
    trained = []

    def watched(model, batch):
        trained.extend([None] * model.training)
        return losses_of(model, batch)

    other = World(seed=1, loss_function=watched)
    other.epoch()
    other.load(torch.load(files[heads - 1], weights_only=True))
    assert other.estimator.estimate() == expected
    assert len(trained) == (3 - heads) * 10
    theirs = other.everything()
    for key in ("model", "optimizer", "scheduler", "rng", "order"):
        assert_same(ours[key], theirs[key], key)
    assert other.estimator.history == world.estimator.history


def test_what_was_begun_before_more_training_is_dropped():
    world, twin = World(loss_function=stopping_at(30, StoppedError)), World()
    with pytest.raises(StoppedError):
        world.estimator.estimate()
    world.epoch()
    twin.epoch()
    assert world.estimator.estimate() == twin.estimator.estimate()


def test_the_same_training_samples_are_measured_and_held_out_ones_never_trained_on():
    measured, trained = [], []

    def watched(model, batch):
        (trained if model.training else measured).append(batch[3].tolist())
        return losses_of(model, batch)

    world = World(loss_function=watched)
    world.estimator.estimate()
    rounds = [measured[i : i + 5] for i in range(0, len(measured), 5)]
    assert len(rounds) == 4
    assert all(each == rounds[0] for each in rounds)
    flat = [i for batch in rounds[0] for i in batch]
    assert flat[:10] == list(range(100, 110))
    assert len(set(flat[10:])) == 10
    assert max(flat[10:]) < 22
    assert {i for batch in trained for i in batch} == set(range(22))


def plain(world, name, epochs):
    """Held-out and training losses after ``epochs`` of one loss, by an ordinary loop."""
    model = copy.deepcopy(world.model)
    used = [*model.heads[name].parameters()]
    for encoder in ("audio", "visual"):
        used += getattr(model, encoder).parameters() if name in ("joint", encoder) else []
    sgd = torch.optim.SGD(used, lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(epochs):
        for batch in world.estimator.train:
            sgd.zero_grad()
            losses_of(model, batch)[name].backward()
            sgd.step()
    model.eval()
    with torch.no_grad():
        whole = [
            tuple(map(torch.cat, zip(*batches, strict=True)))
            for batches in (world.estimator.held_out, world.estimator.train)
        ]
        return [losses_of(model, batch)[name].item() for batch in whole]


def test_gain_and_overfitting_are_those_of_an_ordinary_loop(caplog):
    world = World()
    world.model.audio[3].p = 0.0
    generator = torch.Generator().manual_seed(3)
    batches = [data(n, 0, generator)[:] for n in (7, 2, 5)]  # means over samples, not batches
    held_out = [data(n, 0, generator)[:] for n in (3, 11)]
    world.optimizer.state.clear()
    world.optimizer.param_groups[0]["lr"] = 0.1
    estimator = BlendEstimator(
        world.model,
        world.optimizer,
        lambda model, batch: losses_of(model, batch),
        batches,
        held_out,
        epochs=3,
        progress=False,
    )
    world.estimator = estimator
    world.optimizer.modulator.set_epoch(4)
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with caplog.at_level(logging.INFO, "modgrad"):
        found = estimator.estimate()
    for name in LOSSES:
        before = plain(world, name, 0)
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        after = plain(world, name, 3)
        # float32 losses of about 1: eps 1.2e-7, through 9 steps
        assert found.gain[name] == pytest.approx(before[0] - after[0], abs=1e-5)
        gap = (after[0] - after[1]) - (before[0] - before[1])
        assert found.overfitting[name] == pytest.approx(gap, abs=1e-5)
        assert found.floored[name] == (gap < 0.05 * before[1])
        assert f" of {name} (G " in caplog.text
    assert (found.epoch, found.step) == (4, 5)
    assert estimator.history == [found]
    installed = world.optimizer.modulator.state.weights.tolist()
    np.testing.assert_allclose(installed, list(found.weights.values()), rtol=2**-24)


def test_one_head_alone_leaves_what_it_does_not_reach():
    """Weight decay and momentum move whatever has a gradient, were it 0."""
    seen = []

    def watched(model, batch):
        seen.append({k: v.clone() for k, v in model.named_parameters()})
        return losses_of(model, batch)

    world = World(loss_function=watched)
    world.estimator.estimate()
    reached = {"joint": ("audio", "visual"), "audio": ("audio",), "visual": ("visual",)}
    for k, name in enumerate(LOSSES):
        after = seen[5 + 15 * k + 10]  # the first batch that is measured
        for key, value in seen[0].items():
            moves = key.startswith((f"heads.{name}.", *(f"{m}." for m in reached[name])))
            assert torch.equal(value, after[key]) != moves, (name, key)


@pytest.mark.parametrize("training", [True, False])
def test_it_trains_in_training_mode_and_keeps_what_is_frozen(training):
    modes = set()

    def watched(model, batch):
        modes.add((model.training, model.frozen.training))
        return losses_of(model, batch)

    world = World(loss_function=watched)
    world.model.train(training)
    world.model.frozen.eval()
    world.estimator.estimate()
    assert (world.model.training, world.model.frozen.training) == (training, False)
    assert modes == {(False, False), (True, not training)}


@pytest.mark.parametrize(("unit", "steps"), [("epoch", 2), ("batch", 10)])
def test_the_schedule_runs_in_each_training(unit, steps):
    rates = []

    def watched(model, batch):
        rates.append(world.optimizer.param_groups[0]["lr"].item())
        return losses_of(model, batch)

    world = World(loss_function=watched)
    world.estimator.scheduler_unit = unit
    world.estimator.estimate()
    start = torch.tensor(0.05).item()
    assert rates[0] == rates[5] == rates[20] == start
    assert rates[15] == rates[30] == start * 0.5**steps
    assert world.optimizer.param_groups[0]["lr"] == start


def test_a_joint_head_that_would_not_train_is_told(caplog):
    world = World()
    world.estimator._begun = {
        "step": 5,
        "rng": blending.rng_state([world.order]),
        "losses": [torch.ones(2, 3, dtype=torch.float64)] * 3,
    }
    better = torch.tensor([[0.5] * 3, [0.7] * 3], dtype=torch.float64)
    world.estimator._begun["losses"].append(better)
    found = world.estimator.estimate()
    assert found.weights == {"joint": 0.0, "audio": 0.0, "visual": 1.0}
    assert "weight 0 leaves the head of joint untrained" in caplog.text


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_is_shown_where_asked_for(shown, monkeypatch):
    rich = pytest.importorskip("rich.progress")
    console = rich.Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    world = World()
    world.estimator.progress = shown
    world.estimator.estimate()
    assert ("visual alone, epoch 2/2" in console.file.getvalue()) == shown


def test_batch_sizes():
    x = torch.zeros(3, 2)
    for batch in (x, (x, 1), {"a": [torch.zeros(()), x]}, ["name", {"x": (x,)}]):
        assert blending.batch_size(batch) == 3
    for batch in ("abc", 3, (torch.zeros(()), "abc"), []):
        with pytest.raises(TypeError, match=r"a batch is .*, allowed: one with tensors"):
            blending.batch_size(batch)


def test_errors():
    world = World()

    def make(optimizer=world.optimizer, train=world.train, held_out=world.held_out, **options):
        options = {"epochs": 1, "progress": False} | options
        return BlendEstimator(world.model, optimizer, losses_of, train, held_out, **options)

    sgd = torch.optim.SGD(world.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="`optimizer` is SGD, allowed: ModulatedOptimizer"):
        make(sgd)
    fixed = ModulatedOptimizer(sgd, world.optimizer.modulator.modalities, FixedWeights({}))
    with pytest.raises(TypeError, match="balancer FixedWeights, allowed: GradientBlending"):
        make(fixed)
    with pytest.raises(TypeError, match="`held_out` is an iterator"):
        make(held_out=iter(world.held_out))
    with pytest.raises(ValueError, match="`epochs` is 0, allowed: at least 1"):
        make(epochs=0)
    with pytest.raises(ValueError, match=r"`eps` is nan, allowed: \[0, 1\)"):
        make(eps=float("nan"))
    with pytest.raises(ValueError, match="`scheduler_unit` is 'step'"):
        make(scheduler_unit="step")
    before = copy.deepcopy(world.everything())
    with pytest.raises(ValueError, match="`held_out` has no samples, allowed: at least one"):
        make(held_out=[]).estimate()
    one_loss = make()
    one_loss.loss_function = lambda model, batch: {"joint": losses_of(model, batch)["joint"]}
    with pytest.raises(ValueError, match=r"`losses` has \['joint'\]"):
        one_loss.estimate()
    with pytest.raises(ValueError, match=r"`state_dict` has \['x'\]"):
        make().load_state_dict({"x": 1})
    begun = {"step": 5, "rng": {}, "losses": [torch.zeros(2, 4)]}
    with pytest.raises(ValueError, match=r"holds losses \[2, 4\], allowed: \[2, 3\]"):
        make().load_state_dict({"history": [], "begun": begun})
    assert_same(world.everything(), before)
