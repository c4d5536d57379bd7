"""Linear probes and competition strength: what scikit-learn fits on features."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from modgrad import diagnostics

pytest.importorskip("sklearn")


def samples(relation, n=2000, D=64, d=8):
    """A feature [N, D] and a concept [N, d] that is part of it, or has nothing to do with it."""
    x = torch.randn(n, D, dtype=torch.float64)
    mix = torch.randn(d, d, dtype=torch.float64)
    concept = x[:, :d] @ mix if relation == "contained" else torch.randn(n, d).double() @ mix
    return x, {"audio": concept}


def halves(relation, **sizes):
    x, concepts = samples(relation, **sizes)
    n = len(x) // 2
    audio = concepts["audio"]
    return (x[:n], {"audio": audio[:n]}), (x[n:], {"audio": audio[n:]})


# competition strength


def test_a_contained_concept_is_recovered_and_an_independent_one_is_not():
    """With a ridge of 120 and N = 2000 to fit: shrinkage (120 / 2120)^2 = 0.0032 is left."""
    found = diagnostics.competition_strength(*halves("contained", n=4000))
    assert found.strength["audio"] == pytest.approx((120 / 2120) ** 2, rel=0.25)
    assert found.strength["audio"] < 0.02
    assert found.ceiling["audio"] == pytest.approx((120 / 2120) ** 2, rel=0.1)
    assert found.null["audio"] > 0.9
    apart = diagnostics.competition_strength(*halves("independent", n=4000))
    # 1, and what 64 columns fit of the noise of 2,000 samples: 64 / 2000
    assert apart.strength["audio"] == pytest.approx(1 + 64 / 2000, abs=0.03)
    assert apart.null["audio"] == pytest.approx(apart.strength["audio"], abs=0.03)
    assert apart.ceiling["audio"] < 0.02


def test_strength_is_the_formula():
    """Against the normal equations and V as written."""
    (x, c), (x_test, c_test) = halves("independent", n=100, D=5, d=3)
    c, c_test = c["audio"].numpy(), c_test["audio"].numpy()
    scale = x.numpy().std(0)
    a, b = (x.numpy() - x.numpy().mean(0)) / scale, (x_test.numpy() - x.numpy().mean(0)) / scale
    w = np.linalg.solve(a.T @ a + 7 * np.eye(5), a.T @ (c - c.mean(0)))
    delta = b @ w + c.mean(0) - c_test
    V = (c_test - c_test.mean(0)).T @ (c_test - c_test.mean(0))
    expected = np.trace(delta @ np.linalg.pinv(V) @ delta.T) / 3
    found = diagnostics.competition_strength(*halves_of(x, c, x_test, c_test), alpha=7)
    assert found.strength["audio"] == pytest.approx(expected, rel=1e-9)


def halves_of(x, c, x_test, c_test):
    return (x, {"audio": c}), (x_test, {"audio": c_test})


def test_strength_does_not_depend_on_scales_or_on_repeated_columns():
    (x, c), (x_test, c_test) = halves("independent", n=300, D=6, d=3)
    c, c_test = c["audio"], c_test["audio"]
    plain = diagnostics.competition_strength(*halves_of(x, c, x_test, c_test))
    scaled = diagnostics.competition_strength(
        *halves_of(x * 1e-3 + 5, c * 7 - 2, x_test * 1e-3 + 5, c_test * 7 - 2)
    )
    assert scaled.strength["audio"] == pytest.approx(plain.strength["audio"], rel=1e-9)
    twice = diagnostics.competition_strength(  # a covariance without an inverse
        *halves_of(x, torch.cat([c, c], 1), x_test, torch.cat([c_test, c_test], 1))
    )
    assert twice.strength["audio"] == pytest.approx(plain.strength["audio"], rel=1e-9)
    constant = torch.cat([x, torch.full_like(x[:, :1], 0.1)], 1)
    padded = torch.cat([x_test, torch.full_like(x_test[:, :1], 0.1)], 1)
    same = diagnostics.competition_strength(*halves_of(constant, c, padded, c_test))
    assert same.strength["audio"] == pytest.approx(plain.strength["audio"], rel=1e-9)


def test_the_mean_alone_has_strength_one():
    (_, c), (_, c_test) = halves("independent", n=400, D=2, d=3)
    nothing = torch.ones(200, 2)
    found = diagnostics.competition_strength((nothing, c), (nothing, c_test))
    # means of 200 samples, to fit and to test, are off by 1 / sqrt(200) deviations each
    assert found.strength["audio"] == pytest.approx(1.01, abs=0.02)


def test_bad_samples_are_named():
    fit, test = halves("contained", n=20, D=3, d=2)
    strength = diagnostics.competition_strength
    with pytest.raises(ValueError, match="constant"):
        strength(fit, (test[0], {"audio": torch.full((10, 2), 0.1)}))
    with pytest.raises(ValueError, match="allowed: \\['audio'\\]"):
        strength(fit, (test[0], {"visual": test[1]["audio"]}))
    with pytest.raises(ValueError, match="equally many"):
        strength((fit[0][:4], fit[1]), test)
    with pytest.raises(ValueError, match="columns of features"):
        strength((fit[0][:, :2], fit[1]), test)
    with pytest.raises(ValueError, match="not empty"):
        strength((fit[0][:0], {"audio": fit[1]["audio"][:0]}), test)
    with pytest.raises(ValueError, match="NaN"):
        strength((fit[0] * torch.nan, fit[1]), test)
    with pytest.raises(ValueError, match="alpha"):
        strength(fit, test, alpha=-1)
    with pytest.raises(ValueError, match="shuffles"):
        strength(fit, test, shuffles=0)


# probes


def loader(x, y, batch_size=32):
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def identity(batch):
    return {"informed": batch[0], "blind": torch.zeros_like(batch[0])}


def test_probes_find_what_features_know():
    y = torch.arange(3).repeat(40)
    x = torch.randn(120, 4) * 0.1 + torch.nn.functional.one_hot(y, 4) * 1e3 - 5e4
    found = diagnostics.linear_probes(identity, loader(x[:90], y[:90]), loader(x[90:], y[90:]))
    assert found.accuracy == {"informed": 1.0, "blind": pytest.approx(1 / 3)}
    assert found.train_accuracy["informed"] == 1.0
    assert found.chance == pytest.approx(1 / 3)


def test_probes_flatten_maps_and_judge_unseen_classes_as_wrong():
    x, y = torch.randn(30, 2, 3, 3), torch.arange(2).repeat(15)
    x[:, 0] += 20 * y[:, None, None]
    test = torch.cat([y[:10], torch.full((10,), 5)])
    found = diagnostics.linear_probes(
        lambda b: {"map": b[0]}, loader(x, y), loader(x[[*range(10), *range(10)]], test)
    )
    assert found.accuracy["map"] == 0.5


def test_bad_probes_are_named():
    x, y = torch.randn(8, 2), torch.zeros(8, dtype=torch.int64)
    probe = diagnostics.linear_probes
    with pytest.raises(ValueError, match="at least two"):
        probe(identity, loader(x, y), loader(x, y))
    with pytest.raises(ValueError, match="no batches"):
        probe(identity, loader(x, torch.arange(8)), [])
    with pytest.raises(ValueError, match="NaN"):
        probe(identity, loader(x / 0, torch.arange(8)), loader(x, y))
    with pytest.raises(ValueError, match="samples"):
        probe(lambda b: {"a": b[0][1:]}, loader(x, y), loader(x, y))


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("modgrad.diagnostics.extras.find_spec", lambda name: None)
    x, y = torch.randn(8, 2), torch.arange(8)
    text = "needs scikit-learn: pip install modgrad\\[diagnostics\\]"
    with pytest.raises(ImportError, match=text):
        diagnostics.linear_probes(identity, loader(x, y), loader(x, y))
    with pytest.raises(ImportError, match=text):
        diagnostics.competition_strength(*halves("contained", n=20, D=3, d=2))


def test_importing_diagnostics_imports_no_extra():
    code = "import sys, modgrad; print({'sklearn', 'matplotlib', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
