"""MMTM against its formula, the isolation of a re-balanced branch, and the means it keeps."""

import numpy as np
import pytest
import torch

from modgrad import MMTM

CHANNELS = {"audio": 5, "visual": 3, "text": 4}
SHAPES = {"audio": (5,), "visual": (3, 4), "text": (4, 2, 3)}  # 0, 1 and 2 spatial dimensions
AUDIO, VISUAL = torch.tensor(0), torch.tensor(1)
REGULAR = torch.tensor(-1)


def maps(size=6, dtype=torch.float32):
    return {m: torch.randn(size, *shape, dtype=dtype) for m, shape in SHAPES.items()}


def numpy_gates(mmtm, features):
    """float64 gates [B, C_m] by the formula."""

    def linear(layer, x):
        return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()

    arrays = [features[m].detach().double().numpy() for m in mmtm.channels]
    pooled = [x.reshape(*x.shape[:2], -1).mean(2) for x in arrays]
    hidden = np.maximum(linear(mmtm.squeeze, np.concatenate(pooled, 1)), 0)
    return {m: 1 / (1 + np.exp(-linear(layer, hidden))) for m, layer in mmtm.excite.items()}


def gated(features, gates):
    out = {}
    for m, x in features.items():
        x = x.detach().double().numpy()
        out[m] = x * gates[m].reshape(*gates[m].shape, *[1] * (x.ndim - 2))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_formula(device, dtype):
    mmtm = MMTM(CHANNELS).to(device, dtype)
    assert mmtm.squeeze.out_features == 6  # int(2 * 12 / 4)
    features = maps(dtype=dtype)
    features["text"] = features["text"].to(memory_format=torch.channels_last)
    found = mmtm({m: x.to(device) for m, x in features.items()})
    expected = gated(features, numpy_gates(mmtm.cpu(), features))
    # sums of at most 12 terms in two layers, then sigmoid and product; all terms are below about 4
    tolerance = 64 * torch.finfo(dtype).eps
    for m, x in found.items():
        assert x.dtype == dtype
        assert x.shape == features[m].shape
        np.testing.assert_allclose(x.detach().double().cpu().numpy(), expected[m], 0, tolerance)


def test_order_is_that_of_the_channels_and_not_of_the_features():
    mmtm, features = MMTM(CHANNELS), maps()
    found = mmtm(dict(reversed(features.items())))
    assert list(found) == list(CHANNELS)
    for m, x in mmtm(features).items():
        assert torch.equal(found[m], x)


def test_a_rebalanced_branch_depends_on_itself_alone():
    mmtm = MMTM(CHANNELS)
    mmtm(maps())
    features = {m: x.requires_grad_() for m, x in maps().items()}
    excite = list(mmtm.excite["audio"].parameters())

    def gradients(of, branch):
        out = mmtm(features, branch)
        loss = out[of].square().sum()
        return torch.autograd.grad(loss, [*features.values(), *excite], allow_unused=True)

    audio, visual, text, *own = gradients("audio", AUDIO)
    assert audio.count_nonzero() > 0
    for grad in (visual, text, *own):
        assert grad is None or grad.count_nonzero() == 0
    for grad in gradients("visual", AUDIO)[:3]:
        assert grad.count_nonzero() > 0
    for branch in (REGULAR, VISUAL, None):
        assert all(grad.count_nonzero() > 0 for grad in gradients("audio", branch))


def test_the_gates_of_a_rebalanced_branch_are_its_own_means():
    """The released code takes the first branch's for all."""
    mmtm = MMTM(CHANNELS)
    batches = [maps(size) for size in (6, 1, 9)]
    for features in batches:
        mmtm(features)
    means = {
        m: np.concatenate([numpy_gates(mmtm, features)[m] for features in batches]).mean(0)
        for m in CHANNELS
    }
    features = maps()
    gates = numpy_gates(mmtm, features)
    for i, m in enumerate(CHANNELS):
        expected = gated(features, gates | {m: np.broadcast_to(means[m], gates[m].shape)})
        for name, x in mmtm(features, torch.tensor(i)).items():
            # a gate is below 1 and rounded in some ten operations, times features below about 4
            np.testing.assert_allclose(x.detach().numpy(), expected[name], 0, 64 * 2**-24)


def test_swapped_modalities_swap_the_means():
    mmtm, twin = MMTM({"a": 3, "b": 3}), MMTM({"b": 3, "a": 3})
    twin.excite.load_state_dict(mmtm.excite.state_dict())
    twin.squeeze.load_state_dict(
        {"weight": mmtm.squeeze.weight.roll(3, 1), "bias": mmtm.squeeze.bias}
    )
    for _ in range(3):
        features = {m: torch.randn(5, 3, 2) for m in "ab"}
        mmtm(features)
        twin(features)
    torch.testing.assert_close(twin.means, mmtm.means.roll(3))
    assert not torch.allclose(mmtm.means[:3], mmtm.means[3:])


def test_what_leaves_the_means_alone():
    mmtm = MMTM(CHANNELS)
    mmtm(maps(), REGULAR)
    kept = {name: t.clone() for name, t in mmtm.state_dict().items()}
    assert kept["count"] == 6

    def unchanged():
        return all(torch.equal(t, kept[name]) for name, t in mmtm.state_dict().items())

    mmtm(maps(), AUDIO)
    mmtm(maps(0))
    bad = maps()
    bad["text"][0, 0] = torch.nan
    mmtm(bad)
    assert unchanged(), "re-balancing, an empty batch, a NaN"
    mmtm.eval()
    mmtm(maps())
    mmtm(maps(), REGULAR)
    assert unchanged(), "evaluation"
    mmtm.train()
    mmtm(maps())
    assert not unchanged()


def test_a_value_of_another_modality_does_not_get_through():
    mmtm, bad = MMTM(CHANNELS), maps()
    bad["visual"].fill_(torch.nan)
    assert mmtm(bad, AUDIO)["audio"].isfinite().all()
    assert mmtm(bad)["audio"].isnan().all()


def test_before_the_first_regular_forward_the_mean_is_one_half():
    features = maps()
    assert torch.equal(MMTM(CHANNELS)(features, AUDIO)["audio"], features["audio"] / 2)


def test_state_dict_round_trip():
    mmtm, other = MMTM(CHANNELS), MMTM(CHANNELS)
    for _ in range(3):
        mmtm(maps())
    assert {"means", "count"} <= set(mmtm.state_dict())
    other.load_state_dict(mmtm.state_dict())
    assert other.count == 18
    features = maps()
    for branch in (AUDIO, REGULAR):
        for a, b in zip(
            mmtm(features, branch).values(), other(features, branch).values(), strict=True
        ):
            assert torch.equal(a, b)


def test_autocast_keeps_the_means_in_single_precision():
    mmtm, features = MMTM(CHANNELS), maps()
    with torch.autocast("cpu", torch.bfloat16):
        mmtm(features)
        mmtm(features, AUDIO)
    assert mmtm.means.dtype == torch.float32
    expected = np.concatenate([g.mean(0) for g in numpy_gates(mmtm, features).values()])
    # the logits, below about 2, are rounded to 2^-8 of their size; sigmoid's slope is 1/4
    np.testing.assert_allclose(mmtm.means, expected, 0, 4 * 2**-8)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MMTM({"audio": 4}), r"`channels` is \{'audio': 4\}, allowed: at least 2 branches"),
        (lambda: MMTM({"audio": 4, "visual": 0}), "`channels` is"),
        (lambda: MMTM({"audio": 4, "visual": 4}, 17), r"`ratio` is 17, allowed: \(0, 16\]"),
        (lambda: MMTM({"audio": 4, "visual": 4}, float("nan")), "`ratio` is nan"),
        (lambda: MMTM(CHANNELS)({"audio": torch.ones(2, 5)}), r"`features` has \['audio'\]"),
        (
            lambda: MMTM(CHANNELS)(maps() | {"text": torch.ones(2, 3, 4)}),
            r"`features\['text'\]` has shape \[2, 3, 4\], allowed: \[B, 4, ...\]",
        ),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
