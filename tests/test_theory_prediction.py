"""Statistics of a user's own data: what is refused, and which limits are documented."""

import math

import numpy as np
import pytest
import torch

from modgrad.theory import SecondOrder, predict_unimodal_phase

LATE = {"depth": 2, "fusion_layer": 2, "init": 1e-3}


def numbers(p):
    return [p.t_first, p.wait, p.ratio, p.residual_strength, *p.misattribution.ravel()]


def samples(seed=0, N=500):
    generator = np.random.default_rng(seed)
    x = {"image": generator.normal(0, 2, (N, 3)), "speech": generator.normal(5, 1, (N, 2))}
    return x, x["image"] @ [1.0, 0.5, -1.0] + x["speech"] @ [1.0, -1.0] + 7


def test_a_users_data():
    x, y = samples()
    p = predict_unimodal_phase(x, y, **LATE)
    covariance = np.cov(np.concatenate([x["image"], x["speech"]], 1).T, bias=True)
    cross = covariance @ [1.0, 0.5, -1.0, 1.0, -1.0]
    assert p.first == "image"
    assert p.strengths == pytest.approx(
        {"image": np.linalg.norm(cross[:3]), "speech": np.linalg.norm(cross[3:])}
    )
    left = cross[3:] - covariance[3:, :3] @ np.linalg.solve(covariance[:3, :3], cross[:3])
    assert p.residual_strength == pytest.approx(np.linalg.norm(left))
    gap = p.strengths["image"] - p.strengths["speech"]
    assert p.ratio == pytest.approx(1 + gap / p.residual_strength)
    assert p.t_first == pytest.approx(math.log(1000) / p.strengths["image"])
    assert "image is learned first" in str(p)


def test_tensors_and_the_order_of_modalities_change_nothing():
    x, y = samples()
    p = predict_unimodal_phase(x, y, **LATE)
    tensors = {name: torch.tensor(x[name], requires_grad=True) for name in ("speech", "image")}
    q = predict_unimodal_phase(tensors, torch.tensor(y), **LATE)
    assert q.first == p.first
    np.testing.assert_allclose(numbers(q), numbers(p), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fusion", [1, 2, 3, 4])
@pytest.mark.parametrize("init", [0.3, 1e-2, 1e-9])
def test_the_integral(fusion, init):
    """Against a fine trapezoid, for intermediate and early fusion; late fusion is in closed form.

    The trapezoid's relative error is (step of log v)^2 / 12 times slopes^2 < 36: below 1e-6.
    """
    if fusion == 4:
        p = predict_unimodal_phase(SecondOrder.toy(2), depth=4, fusion_layer=4, init=init)
        assert p.t_first == pytest.approx(init**-2 / 2 / 4)
        return
    k, w_A = 0.4, 5.0
    p = predict_unimodal_phase(SecondOrder.toy(2, 0.5), depth=4, fusion_layer=fusion, init=init)
    v = np.exp(np.linspace(math.log(init), 0, 100_001))
    if fusion == 2:
        v_B = v**k * init ** (1 - k)
    else:
        power = 2 - fusion
        v_B = (k * v**power + (1 - k) * init**power) ** (1 / power)
    integrand = 1 / (w_A * v ** (fusion - 1) * (v**2 + v_B**2) ** ((4 - fusion) / 2))
    expected = ((integrand[1:] + integrand[:-1]) / 2 * np.diff(v)).sum()
    assert p.t_first == pytest.approx(expected, rel=1e-6)
    assert p.wait == 0 if fusion == 1 else p.wait > 0


def test_a_modality_that_is_constant_is_never_learned():
    x, y = samples()
    x["speech"] = np.full((500, 2), 0.1)
    for depth, fusion in ((2, 2), (4, 4), (4, 3), (4, 2), (4, 1)):
        p = predict_unimodal_phase(x, y, depth=depth, fusion_layer=fusion, init=0.01)
        assert (p.first, p.permanent) == ("image", True)
        assert any("constant" in text for text in p.warnings)
        assert not np.isnan(numbers(p)).any()


def test_a_copy_is_never_learned_and_a_suppressor_late():
    x, y = samples()
    p = predict_unimodal_phase({"image": x["image"], "copy": x["image"] / 2}, y, **LATE)
    assert (p.first, p.permanent, p.residual_strength) == ("image", True, 0.0)
    # x_B is uncorrelated with y, and still needed: its wait is finite
    suppressor = SecondOrder({"A": 1, "B": 1}, np.array([[2.0, 1.0], [1.0, 1.0]]), [1.0, 0.0])
    for depth, fusion in ((2, 2), (4, 3), (4, 2)):
        p = predict_unimodal_phase(suppressor, depth=depth, fusion_layer=fusion, init=0.1)
        assert math.isfinite(p.ratio)
        assert p.ratio > 1
    p = predict_unimodal_phase(suppressor, **LATE)
    assert p.ratio == pytest.approx(1 + 1 / 0.5)


def test_a_modality_that_is_turned_shrinks_first():
    """rho r < -1: x_B is drawn below 0 at first, and up once A is learned: w_B = 1 + rho r < 0."""
    for rho in (-0.6, -0.9):
        p = predict_unimodal_phase(SecondOrder.toy(2, rho), **LATE)
        assert p.ratio == pytest.approx(1 + 3 / (1 - rho**2))
        for fusion in (1, 2, 3):
            p = predict_unimodal_phase(
                SecondOrder.toy(2, rho), depth=4, fusion_layer=fusion, init=0.01, lr=0.1
            )
            assert np.isfinite(numbers(p)).all()


def test_a_singular_covariance_is_its_pseudo_inverse():
    x, y = samples()
    p = predict_unimodal_phase(x, y, **LATE)
    doubled = {"image": np.concatenate([x["image"], x["image"]], 1), "speech": x["speech"]}
    q = predict_unimodal_phase(doubled, y, **LATE)
    assert q.residual_strength == pytest.approx(p.residual_strength)
    assert q.misattribution[:3] == pytest.approx(p.misattribution / 2)
    assert any("covariance of image is singular" in text for text in q.warnings)


def test_scales_far_apart():
    x, y = samples()
    p = predict_unimodal_phase({"image": x["image"], "speech": 1e-6 * x["speech"]}, y, **LATE)
    assert p.first == "image"
    assert p.ratio == pytest.approx(1 + p.strengths["image"] / p.residual_strength, rel=1e-3)
    assert np.isfinite(numbers(p)).all()


def some(text, p):
    return any(text in warning for warning in p.warnings)


def test_warnings():
    toy = SecondOrder.toy(2)
    assert predict_unimodal_phase(toy, **LATE).warnings == ()
    assert predict_unimodal_phase(toy, initialise="random", **LATE).warnings == ()
    deep = {"depth": 4, "fusion_layer": 4, "init": 0.05}
    assert predict_unimodal_phase(toy, lr=0.02, **deep).warnings == ()
    assert some("random", predict_unimodal_phase(toy, initialise="random", **deep))
    assert some("not linear", predict_unimodal_phase(toy, linear=False, **deep))
    assert some("equally strong", predict_unimodal_phase(SecondOrder.toy(1.01), **LATE))
    assert some("not small", predict_unimodal_phase(toy, **LATE | {"init": 0.6}))
    assert some("diverges", predict_unimodal_phase(toy, lr=0.6, **LATE))
    assert some("gradient flow", predict_unimodal_phase(toy, lr=0.1, **deep))
    x, y = samples()
    vectors = predict_unimodal_phase(x, np.stack([y, y**2], 1), **LATE)
    assert some("vector targets", vectors)
    assert vectors.misattribution.shape == (3, 2)
    stretched = {**x, "image": x["image"] * [1.0, 1.0, 5.0]}
    assert some("condition", predict_unimodal_phase(stretched, y, **LATE))
    assert predict_unimodal_phase(x, y, **LATE).warnings == ()
    few = {name: values[:5] for name, values in x.items()}  # centred, of rank 4
    assert some("joint covariance", predict_unimodal_phase(few, y[:5] ** 2, **LATE))


def broken(**changes):
    x, y = samples(N=20)
    data = {"image": x["image"], "speech": x["speech"], "y": y} | changes
    return {k: v for k, v in data.items() if k != "y"}, data["y"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (broken(image=np.full((20, 3), np.nan)), r"`features\['image'\]` holds NaN"),
        (broken(y=np.full(20, np.inf)), "`targets` holds NaN or infinity"),
        (broken(image=np.ones((19, 3))), r"`features\['image'\]` has 19 samples, allowed: 20"),
        (broken(image=np.ones((20, 3, 2))), r"`features\['image'\]` has shape \(20, 3, 2\)"),
        (broken(image=np.ones((20, 0))), "not empty"),
        (broken(touch=np.ones(20)), "exactly two modalities"),
        (({"image": np.ones(20)}, np.ones(20)), "exactly two modalities"),
        (broken(y=np.ones(20)), "correlates with no modality"),
        ((broken()[0], None), "`targets` is None"),
        ((SecondOrder.toy(2), np.ones(20)), "`targets` comes with statistics"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        predict_unimodal_phase(*data, **LATE)


def test_samples_in_no_dict():
    with pytest.raises(TypeError, match="`features` is list"):
        predict_unimodal_phase([np.ones(3), np.ones(3)], np.ones(3), **LATE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 1}, "`depth` is 1"),
        ({"fusion_layer": 0}, "`fusion_layer` is 0"),
        ({"init": 1.0}, "`init` is 1.0"),
        ({"init": math.nan}, "`init` is nan"),
        ({"lr": 0.0}, "`lr` is 0.0"),
        ({"initialise": "other"}, "`initialise` is 'other'"),
        ({"weights": {"C": 1.0}}, "`weights` names 'C'"),
        ({"weights": {"A": 0.0}}, r"`weights\['A'\]` is 0.0"),
        ({"weights": {"A": 0.5}, "fusion_layer": 1}, "unless fusion is late"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_unimodal_phase(SecondOrder.toy(2), **LATE | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"A": 1, "B": 1}, np.eye(3), [1, 1]), r"`covariance` has shape \(3, 3\)"),
        (({"A": 1, "B": 1}, np.eye(2), [1, 1, 1]), r"`cross` has shape \(3, 1\)"),
        (({"A": 0, "B": 2}, np.eye(2), [1, 1]), r"`sizes\['A'\]` is 0"),
        (({"A": 1, "B": 1}, [[1, 2], [0, 1]], [1, 1]), "not symmetric"),
        (({"A": 1, "B": 1}, [[1, 2], [2, 1]], [1, 1]), "eigenvalue -1"),
        (({"A": 1, "B": 1}, [[1, 0], [0, 0]], [1, 1]), "features of no variance"),
        (({"A": 1, "B": 1}, [[1, 1], [1, 1]], [1, 0]), "features of no variance"),
        (({"A": 1, "B": 1}, np.eye(2), [1, 1], 1.0), "`power` is 1"),
        (({"A": 1, "B": 1}, [[math.nan, 0], [0, 1]], [1, 1]), "`covariance` holds NaN"),
    ],
)
def test_bad_statistics(arguments, message):
    with pytest.raises(ValueError, match=message):
        SecondOrder(*arguments)
