"""Diagnostics over loaders and of curves: against values by hand, and against brute force."""

import math
import random
import sys
from itertools import pairwise, permutations
from types import SimpleNamespace

import pytest
import torch
from test_distributed import join, leave, run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modgrad
from modgrad import diagnostics
from modgrad.diagnostics.extras import track
from modgrad.records import LastStep

NAMES = ("audio", "visual", "text", "depth", "touch", "smell", "taste")
TWO, THREE = NAMES[:2], NAMES[:3]
C = 4


def additive(names, samples=64):
    """Logits that each modality adds, targets, and a loader of both in batches of awkward size."""
    parts = torch.randn(len(names), samples, C, dtype=torch.float64)
    y = torch.randint(0, C, (samples,))
    loader = DataLoader(TensorDataset(parts.transpose(0, 1), y), batch_size=7)
    return parts, y, loader


def interacting(names):
    """A forward pass in which modalities also act in pairs."""

    def forward(batch, present):
        chosen = [batch[0][:, i] for i, m in enumerate(names) if m in present]
        out = sum(chosen)
        for a, b in pairwise(chosen):
            out = out + a.roll(1, 1) * b
        return out

    return forward


def shapley(v, names):
    """The mean over all orders of what a modality adds where it joins."""
    out = dict.fromkeys(names, 0.0)
    orders = list(permutations(names))
    for order in orders:
        for i, m in enumerate(order):
            out[m] += (v(frozenset(order[: i + 1])) - v(frozenset(order[:i]))) / len(orders)
    return out


# attribution


@pytest.mark.parametrize("names", [TWO, THREE, NAMES[:5]], ids=len)
def test_attributions_are_shapley_values_of_accuracy_and_margin(device, names):
    parts, y, loader = additive(names)
    forward = interacting(names)
    found = diagnostics.attributions(
        lambda batch, s: forward((batch[0].to(device),), s), loader, names
    )
    whole = (parts.transpose(0, 1), y)
    baseline = torch.bincount(y).max().item() / len(y)

    def accuracy(s):
        return (forward(whole, s).argmax(1) == y).double().mean().item() if s else baseline

    def margin(s):
        logits = forward(whole, s) if s else torch.zeros(len(y), C)
        return (logits[range(len(y)), y] - logits.mean(1)).mean().item()

    # 2^M sums of 64 numbers of about 1 in float64: rounding below 1e-12
    assert found.accuracy == pytest.approx(shapley(accuracy, names), abs=1e-12)
    assert found.margin == pytest.approx(shapley(margin, names), abs=1e-12)
    assert found.joint == accuracy(frozenset(names))
    assert sum(found.accuracy.values()) == pytest.approx(found.joint - baseline, abs=1e-12)
    assert (found.baseline, found.samples) == (baseline, len(y))
    assert set(found.sampling_error.values()) == {0.0}
    responses = modgrad.mono_modal_responses(lambda s: forward(whole, s), names)
    right = {m: (phi.argmax(1) == y).double().mean().item() for m, phi in responses.items()}
    assert found.response_accuracy == pytest.approx(right)


def test_error_of_an_attribution_is_that_of_the_mean_over_samples():
    parts, y, loader = additive(TWO)
    found = diagnostics.attributions(interacting(TWO), loader, TWO)
    whole = (parts.transpose(0, 1), y)
    hit = {
        s: (interacting(TWO)(whole, frozenset(s)).argmax(1) == y).double()
        for s in (("audio",), ("visual",), TWO)
    }
    own = (hit[("audio",)] + hit[TWO] - hit[("visual",)]) / 2
    assert found.error["audio"] == pytest.approx(own.std(correction=0).item() / len(y) ** 0.5)


def test_above_six_modalities_orders_are_sampled():
    _, _, loader = additive(NAMES)
    sets = set()

    def forward(batch, present):
        sets.add(present)
        return interacting(NAMES)(batch, present)

    found = diagnostics.attributions(forward, loader, NAMES, orders=12)
    assert len(sets) <= 12 * 6 + 1
    # each order's contributions sum to the whole, whatever was drawn
    assert sum(found.accuracy.values()) == pytest.approx(found.joint - found.baseline)
    assert all(value > 0 for value in found.sampling_error.values())
    again = diagnostics.attributions(forward, loader, NAMES, orders=12)
    assert again == found
    other = diagnostics.attributions(forward, loader, NAMES, orders=12, seed=1)
    assert other.accuracy != found.accuracy


def test_the_sampling_error_is_a_standard_error():
    """Over many seeds, estimates scatter around the exact value as the error says."""
    _, y, loader = additive(NAMES, samples=21)
    whole = next(iter(DataLoader(loader.dataset, batch_size=21)))
    cache = {}

    def forward(batch, present):
        if present not in cache:
            cache[present] = interacting(NAMES)(batch, present)
        return cache[present]

    runs = [
        diagnostics.attributions(forward, [whole], NAMES, orders=8, seed=seed) for seed in range(40)
    ]
    baseline = torch.bincount(y).max().item() / len(y)

    def v(s):
        return (forward(whole, s).argmax(1) == y).double().mean().item() if s else baseline

    exact = dict.fromkeys(NAMES, 0.0)  # 5,040 orders are too many: by the formula
    for bits in range(1, 2 ** len(NAMES)):
        s = frozenset(m for i, m in enumerate(NAMES) if bits >> i & 1)
        for m in s:
            exact[m] += (v(s) - v(s - {m})) / (7 * math.comb(6, len(s) - 1))
    z = [(r.accuracy[m] - exact[m]) / r.sampling_error[m] for r in runs for m in NAMES]
    # 280 values of Student's t with 7 degrees of freedom: root mean square 1.18, here +- 0.35
    assert 0.8 < (sum(x * x for x in z) / len(z)) ** 0.5 < 1.6


def test_a_modality_of_noise_gets_nothing_and_a_useless_network_no_shares():
    y = torch.arange(C).repeat(8)
    loader = [(y, y)]

    def only_audio(batch, present):
        logits = nn.functional.one_hot(batch[0], C).double()
        return logits if "audio" in present else torch.zeros_like(logits)

    found = diagnostics.attributions(only_audio, loader, TWO)
    assert found.shares() == {"audio": 1.0, "visual": 0.0}
    nothing = diagnostics.attributions(lambda b, s: torch.zeros(len(b[1]), C), loader, TWO)
    assert nothing.shares() == {"audio": 0.0, "visual": 0.0}


# utilization


def test_utilization_by_hand_in_branches():
    y = torch.tensor([0, 1, 0, 1])

    def logits(*classes):
        return nn.functional.one_hot(torch.tensor(classes), 2).float()

    def predict(batch, replaced):
        table = {
            frozenset(): {"audio": logits(0, 1, 0, 0), "visual": logits(0, 1, 1, 0)},
            frozenset({"audio"}): {"audio": logits(1, 1, 1, 1), "visual": logits(1, 0, 1, 0)},
            frozenset({"visual"}): {"audio": logits(0, 0, 0, 0), "visual": logits(1, 1, 1, 1)},
        }
        return table[replaced]

    found = diagnostics.conditional_utilization(predict, [(None, y)], TWO)
    assert found.accuracy == {"audio": 0.75, "visual": 0.5}
    assert found.rate == {  # branch audio: 3 right, 2 without visual; branch visual: 2, then 0
        "audio": {"visual": pytest.approx(1 / 3)},
        "visual": {"audio": pytest.approx(1.0)},
    }
    assert found.difference("audio", "visual") == pytest.approx(1 / 3 - 1)
    assert found.difference("visual", "audio") == pytest.approx(1 - 1 / 3)
    # of (0, 1, 0, 0): deviation sqrt(3) / 4 over sqrt(4), over an accuracy of 3/4
    assert found.error["audio"]["visual"] == pytest.approx(3**0.5 / 4 / 2 / 0.75)


def test_a_branch_that_is_never_right_has_utilization_zero():
    y = torch.zeros(3, dtype=torch.int64)
    wrong = torch.tensor([[0.0, 1.0]]).repeat(3, 1)
    found = diagnostics.conditional_utilization(
        lambda b, r: wrong if not r else -wrong, [(y,)], TWO
    )
    assert found.rate == {"audio": {"visual": 0.0}, "visual": {"audio": 0.0}}


@pytest.mark.parametrize("names", [TWO, THREE], ids=len)
def test_only_the_modality_that_tells_the_label_is_used(names):
    """The label depends on the first modality alone."""
    torch.manual_seed(0)
    x = {m: torch.randn(600, 5) for m in names}
    y = (x[names[0]] @ torch.randn(5, 3)).argmax(1)
    data = TensorDataset(*x.values(), y)
    model = nn.ModuleDict({m: nn.Sequential(nn.Linear(5, 16), nn.ReLU()) for m in names})
    model["head"] = nn.Linear(16 * len(names), 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def features(batch):
        return {m: model[m](part) for m, part in zip(names, batch, strict=False)}

    train, test = torch.utils.data.random_split(data, [400, 200])
    for _ in range(12):
        for batch in DataLoader(train, batch_size=50):
            logits = model["head"](torch.cat(list(features(batch).values()), 1))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, batch[-1]).backward()
            optimizer.step()
    means = diagnostics.FeatureMeans.over(features, DataLoader(train, batch_size=64)).means()

    def predict(batch, replaced):
        filled = diagnostics.fill_means(features(batch), means, replaced)
        return model["head"](torch.cat(list(filled.values()), 1))

    found = diagnostics.conditional_utilization(predict, DataLoader(test, batch_size=64), names)
    first, *others = names
    for m in others:
        assert found.rate[m][first] > 0.3
        assert abs(found.rate[first][m]) <= max(3 * found.error[first][m], 0.06)
        assert found.difference(first, m) < -0.2


def test_feature_means(device):
    x = torch.randn(10, 3, 2, device=device)
    means = diagnostics.FeatureMeans.over(
        lambda b: {"audio": b[0], "visual": b[0][:, 0]}, DataLoader(TensorDataset(x), batch_size=4)
    )
    found = means.means()
    torch.testing.assert_close(found["audio"], x.double().mean(0), rtol=1e-14, atol=1e-15)
    filled = diagnostics.fill_means({"audio": x, "visual": x[:, 0]}, found, {"visual"})
    assert filled["audio"] is x
    torch.testing.assert_close(filled["visual"], x[:, 0].mean(0).expand(10, 2))
    with pytest.raises(ValueError, match="touch"):
        diagnostics.fill_means({"audio": x}, found, {"touch"})
    with pytest.raises(ValueError, match="shape"):
        diagnostics.fill_means({"audio": x[:, :2]}, found, {"audio"})
    with pytest.raises(ValueError, match="one size"):
        means.update({"audio": x, "visual": x[:5, 0]})
    with pytest.raises(ValueError, match="at least one sample"):
        diagnostics.FeatureMeans().means()


# both


BOTH = (diagnostics.attributions, diagnostics.conditional_utilization)


@pytest.mark.parametrize("measure", BOTH)
def test_bad_loaders_are_named(measure):
    def forward(batch, _):
        return torch.zeros(len(batch[1]) if isinstance(batch, tuple) else 3, C)

    y = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="no batches"):
        measure(forward, [], TWO)
    with pytest.raises(ValueError, match="no samples"):
        measure(forward, [(y[:0], y[:0])], TWO)
    for bad in (C, -100):
        with pytest.raises(ValueError, match="out of range, allowed: 0 to 3"):
            measure(forward, [(y, y), (y, y.index_fill(0, torch.tensor(1), bad))], TWO)
    with pytest.raises(ValueError, match="integers"):
        measure(forward, [(y, y.float())], TWO)
    with pytest.raises(ValueError, match="at least 2"):
        measure(forward, [(y, y)], ["audio"])
    with pytest.raises(TypeError, match="targets"):
        measure(forward, [{"y": y}], TWO)
    with pytest.raises(ValueError, match=r"\[B, C\]"):
        measure(lambda b, s: torch.zeros(3), [(y, y)], TWO)


def test_logits_that_are_not_finite_are_an_error_and_shapes_are_checked():
    y = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="NaN"):
        diagnostics.attributions(lambda b, s: torch.full((3, C), math.nan), [(y, y)], TWO)
    with pytest.raises(ValueError, match="for \\['audio'\\]"):
        diagnostics.attributions(lambda b, s: torch.zeros(3, C if len(s) > 1 else 2), [(y, y)], TWO)
    with pytest.raises(ValueError, match="`predict` returns"):
        diagnostics.conditional_utilization(
            lambda b, r: {"audio": torch.zeros(3, C)}, [(y, y)], TWO
        )


@pytest.mark.parametrize("measure", BOTH)
def test_the_model_is_evaluated_and_its_modes_and_gradients_come_back(measure):
    model = nn.Sequential(nn.Linear(3, C), nn.BatchNorm1d(C), nn.Dropout())
    model[1].eval()
    seen = []

    def forward(batch, _):
        seen.append([module.training for module in model] + [torch.is_grad_enabled()])
        return model(batch[0])

    measure(forward, [(torch.randn(6, 3), torch.randint(0, C, (6,)))], TWO, model=model)
    assert {tuple(row) for row in seen} == {(False, False, False, False)}
    assert [module.training for module in model] == [True, False, True]
    assert torch.is_grad_enabled()


def uneven(rank, folder):
    join(rank, folder)
    torch.manual_seed(0)
    _, _, loader = additive(THREE)
    everything = list(loader)
    mine = everything[:3] if rank == 0 else everything[3:]  # 21 and 43 samples
    forward = interacting(THREE)
    whole = diagnostics.attributions(forward, mine, THREE)
    used = diagnostics.conditional_utilization(lambda b, r: forward(b, set(THREE) - r), mine, THREE)
    means = diagnostics.FeatureMeans.over(lambda b: {"audio": b[0]}, mine).means()
    torch.save((whole, used, means), f"{folder}/{rank}.pt")
    leave()


def test_ranks_count_all_samples_alike(tmp_path):
    run(uneven, tmp_path)
    torch.manual_seed(0)
    parts, _, loader = additive(THREE)
    forward = interacting(THREE)
    whole = diagnostics.attributions(forward, loader, THREE)
    used = diagnostics.conditional_utilization(
        lambda b, r: forward(b, set(THREE) - r), loader, THREE
    )
    for rank in (0, 1):
        a, u, means = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert (a.samples, u.samples) == (64, 64)
        for field in ("accuracy", "error", "margin", "response_accuracy"):
            assert getattr(a, field) == pytest.approx(getattr(whole, field), abs=1e-12)
        assert u.rate["audio"] == pytest.approx(used.rate["audio"], abs=1e-12)
        torch.testing.assert_close(means["audio"], parts.transpose(0, 1).mean(0))


# overfitting


def test_overfitting_to_generalization_by_hand():
    train = {"joint": (2.0, 0.5), "audio": (2.0, 1.0), "flat": (1.0, 0.5), "still": (1.0, 1.0)}
    validation = {"joint": (2.0, 1.5), "audio": (2.0, 2.5), "flat": (1.0, 1.0), "still": (2.0, 2.0)}
    found = diagnostics.overfitting_to_generalization(train, validation)
    assert found.overfitting == {"joint": 1.0, "audio": 1.5, "flat": 0.5, "still": 0.0}
    assert found.generalization == {"joint": 0.5, "audio": -0.5, "flat": 0.0, "still": 0.0}
    assert found.ratio == {"joint": 2.0, "audio": 3.0, "flat": math.inf, "still": 0.0}
    with pytest.raises(ValueError, match="allowed: \\['joint'\\]"):
        diagnostics.overfitting_to_generalization({"joint": (1, 2)}, {"audio": (1, 2)})
    with pytest.raises(ValueError, match="two finite losses"):
        diagnostics.overfitting_to_generalization({"joint": (1, math.nan)}, {"joint": (1, 2)})


# learning speed


def recorded(grads, params):
    """A modulator whose last step had these norms, of two branches and their fusion."""
    names = ("m0", "m1", "f0", "f1")
    g, p = (torch.tensor(x, dtype=torch.float64) for x in (grads, params))
    last = LastStep(names, torch.ones(4), grad_sq_norms=g, param_sq_norms=p)
    return SimpleNamespace(last=last)


def test_learning_speed_by_hand():
    speed = diagnostics.LearningSpeed({"m0": "f0", "m1": "f1"})
    with pytest.raises(RuntimeError, match="no step"):
        speed.read()
    for f0 in (2.0, 4.0, 6.0):
        modulator = recorded([1, 2, f0, 1], [1, 1, 2, 1])
        speed.step(modulator)
        speed.step(modulator)  # the same step again: not counted twice
    # sums of mu: own (3, 6), fusion (6, 3)
    assert speed.read() == pytest.approx({"m0": math.log10(2), "m1": math.log10(0.5)})
    assert speed.difference("m0", "m1") == pytest.approx(0.60206, abs=1e-6)
    speed.step(recorded([math.nan, 2, 1, 1], [1, 1, 2, 1]))
    assert speed.difference("m0", "m1") == pytest.approx(0.60206, abs=1e-6)


def test_learning_speed_without_a_gradient_is_unknown_and_needs_its_records():
    speed = diagnostics.LearningSpeed({"m0": "f0", "m1": "f1"})
    speed.step(recorded([0, 1, 1, 1], [1, 1, 1, 1]))
    assert speed.read() == {"m0": None, "m1": 0.0}
    assert speed.difference("m0", "m1") is None
    bare = SimpleNamespace(last=LastStep(("m0", "m1", "f0", "f1"), torch.ones(4)))
    with pytest.raises(ValueError, match="record="):
        speed.step(bare)


# phase


def test_learning_order_by_hand():
    curves = {"audio": [0, 0, 0, 1, 2, 2], "visual": [0, 4, 4, 4, 4, 4]}
    found = diagnostics.learning_order(curves, [0, 10, 20, 30, 40, 50])
    assert found.half_time == {"audio": 30.0, "visual": 5.0}
    assert found.order == ("visual", "audio")
    assert (found.length, found.ratio) == (25.0, 6.0)


def test_learning_order_of_a_deep_linear_network():
    """Two scalar inputs of variance 4 and 1, two layers, late fusion: t_B / t_A is 4."""
    w = torch.full((2, 2), 1e-6, dtype=torch.float64)
    curves = {"audio": [], "visual": []}
    variance = torch.tensor([4.0, 1.0], dtype=torch.float64)
    for _ in range(8000):
        total = w[0] * w[1]
        for name, value in zip(curves, total.tolist(), strict=True):
            curves[name].append(value)
        w = w + 0.004 * variance * (1 - total) * w.flip(0)
    found = diagnostics.learning_order(curves)
    assert found.order == ("audio", "visual")
    # a learning rate of 0.004 makes it 3.976; the starting value and the half level cost 2 %
    assert found.ratio == pytest.approx(4.0, rel=0.03)


def test_learning_order_of_what_is_never_learned():
    found = diagnostics.learning_order({"audio": [0.0, 0.01], "visual": [0.0, 1.0]}, least=0.02)
    assert found.half_time == {"audio": math.inf, "visual": 0.5}
    assert (found.length, found.ratio) == (math.inf, math.inf)
    none = diagnostics.learning_order({"audio": [0.0, 0.0], "visual": [0.0, -1.0]})
    assert (none.length, none.ratio) == (0.0, 1.0)
    at_once = diagnostics.learning_order({"audio": [1.0, 1.0], "visual": [0.0, 1.0]})
    assert at_once.ratio == math.inf


@pytest.mark.parametrize(
    ("curves", "times", "message"),
    [
        ({"audio": [1]}, None, "at least 2"),
        ({"audio": [], "visual": []}, None, "at least one"),
        ({"audio": [1], "visual": [1, 2]}, None, "equally many"),
        ({"audio": [1, math.nan], "visual": [1, 2]}, None, "NaN"),
        ({"audio": [1, 2], "visual": [1, 2]}, [1, 1], "increasing"),
    ],
)
def test_bad_curves(curves, times, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.learning_order(curves, times)


# conflict


def test_cosines_and_shares(device):
    grads = torch.randn(3, 4, 50, dtype=torch.float64, device=device)
    gram = grads @ grads.transpose(1, 2)
    expected = nn.functional.cosine_similarity(grads[:, :, None], grads[:, None], dim=3)
    torch.testing.assert_close(diagnostics.cosines(gram), expected, rtol=1e-12, atol=1e-14)
    least = expected.flatten(1).min(1).values
    torch.testing.assert_close(diagnostics.least_cosine(gram), least, rtol=1e-12, atol=1e-14)
    norms = grads.norm(dim=2)[:, 0]
    shares = diagnostics.norm_shares(norms.square())
    torch.testing.assert_close(shares, norms / norms.sum())


def test_cosines_and_shares_at_their_limits():
    huge = 2.0**1000  # squared, it would overflow
    gram = torch.tensor([[[4, 0], [0, 0]], [[huge, -huge], [-huge, huge]]], dtype=torch.float64)
    assert diagnostics.cosines(gram).tolist() == [[[1, 0], [0, 0]], [[1, -1], [-1, 1]]]
    assert diagnostics.least_cosine(gram).tolist() == [1, -1]
    assert diagnostics.cosines(torch.full((1, 1), math.nan)).tolist() == [[0.0]]
    rows = torch.tensor([[9.0, 1.0], [0.0, 0.0], [math.inf, 1.0], [math.nan, 1.0]])
    assert diagnostics.norm_shares(rows).tolist() == [[0.75, 0.25], [0, 0], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="K, K"):
        diagnostics.cosines(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scalar"):
        diagnostics.norm_shares(torch.tensor(1.0))


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_lets_everything_through(monkeypatch, capsys, shown):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track(iter(range(3)), "features", shown)) == [0, 1, 2]
    assert list(track([], "features", shown)) == []
    assert ("features" in capsys.readouterr().err) == shown


def test_nothing_is_drawn_from_the_callers_generators():
    _, _, loader = additive(NAMES)
    batches = list(loader)
    before = torch.get_rng_state(), random.getstate()
    diagnostics.attributions(interacting(NAMES), batches[:1], NAMES, orders=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
