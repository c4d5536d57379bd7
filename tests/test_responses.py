"""Mono-modal responses against the definition of the Shapley value, and the short cut for them."""

import math
from itertools import combinations, permutations

import fusion
import networks
import pytest
import torch
from torch import nn

import modgrad
from modgrad import late_fusion_responses, masked, mono_modal_responses, present_mask

NAMES = ("audio", "visual", "text", "depth", "touch")
TWO, THREE = NAMES[:2], NAMES[:3]


def table(names, shape=(3, 4), **options):
    """Independent logits of every non-empty set."""
    options = {"dtype": torch.float64} | options
    sets = [frozenset(s) for n in range(1, len(names) + 1) for s in combinations(names, n)]
    return {s: torch.randn(shape, **options) for s in sets}


def shapley(logits, names):
    """What a modality adds where it joins, averaged over all orders of joining."""
    out = dict.fromkeys(names, 0)
    for order in permutations(names):
        before = 0
        for i, name in enumerate(order):
            after = logits[frozenset(order[: i + 1])]
            out[name] = out[name] + (after - before) / math.factorial(len(names))
            before = after
    return out


@pytest.mark.parametrize("M", [2, 3, 4, 5])
def test_responses_are_shapley_values_and_sum_to_the_logits(device, M):
    logits = table(NAMES[:M], device=device)
    found = mono_modal_responses(logits.get, NAMES[:M])
    assert list(found) == list(NAMES[:M])
    # at most 2^M terms of size about 1 each way: 2^M eps, and 1e-12 is 100 times that
    for name, value in shapley(logits, NAMES[:M]).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)
    total = sum(found.values())
    torch.testing.assert_close(total, logits[frozenset(NAMES[:M])], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", fusion.FUSIONS)
@pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
def test_responses_of_networks_sum_to_the_logits(device, fused, modalities):
    model = fusion.FUSIONS[fused](modalities).double().to(device)
    inputs, _ = networks.batch(modalities, device=device, dtype=torch.float64)
    found = mono_modal_responses(lambda s: model(masked(inputs, s)), modalities, model=model)
    torch.testing.assert_close(sum(found.values()), model(inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3), (1, 1), (7,)], ids=str)
def test_any_shape(shape):
    logits = table(THREE, shape)
    found = mono_modal_responses(logits.get, THREE)
    for name, value in shapley(logits, THREE).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_summed_in_float32_under_autocast_too(device, dtype):
    logits = {s: x.to(device, dtype) for s, x in table(THREE).items()}
    wide = shapley({s: x.double() for s, x in logits.items()}, THREE)
    with torch.autocast(device, torch.bfloat16):
        found = mono_modal_responses(logits.get, THREE)
    for name in THREE:
        assert found[name].dtype == torch.float32
        # 7 products and 6 sums of numbers below 4 with weights that sum to 7/3: 13 * 10 * 2^-24
        torch.testing.assert_close(found[name].double(), wide[name], rtol=0, atol=1e-5)


def test_everything_is_asked_for_first_and_every_set_once():
    logits, asked = table(NAMES[:4]), []
    mono_modal_responses(lambda s: asked.append(s) or logits[s], NAMES[:4])
    assert asked[0] == frozenset(NAMES[:4])
    assert len(asked) == 15
    assert set(asked) == set(logits)


def test_modalities_may_be_an_assignment():
    model = networks.LateFusion(THREE)
    logits = table(THREE)
    found = mono_modal_responses(logits.get, modgrad.Modalities(model, **model.specs()))
    assert list(found) == list(THREE)


class Noting(nn.Module):
    """Notes its modes; one of its modules stays in eval mode throughout."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.norm, self.frozen, self.drop = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.frozen.eval()
        self.modes, self.fail_at = [], fail_at

    def forward(self, x):
        self.modes.append([m.training for m in self.modules()])
        if len(self.modes) == self.fail_at:
            raise RuntimeError("failed")
        return self.drop(self.frozen(self.norm(x)))


def test_absence_is_evaluated_in_eval_mode_and_modes_come_back():
    model, x = Noting(), torch.randn(5, 4)
    before = [m.training for m in model.modules()]
    responses = mono_modal_responses(lambda s: model(x * len(s)), THREE, model=model)
    assert model.modes[0] == before == [True, True, False, True]
    assert model.modes[1:] == [[False] * 4] * 6
    assert [m.training for m in model.modules()] == before
    assert model.norm.num_batches_tracked == 1  # of the full forward alone
    sum(responses.values()).sum().backward()  # nothing that backward needs was overwritten
    mono_modal_responses(lambda s: model(x), TWO)
    assert model.modes[-3:] == [before] * 3  # without `model`, modes are the caller's


def test_modes_come_back_after_an_exception():
    for fail_at in (1, 2, 3):
        model = Noting(fail_at)
        before = [m.training for m in model.modules()]
        with pytest.raises(RuntimeError, match="failed"):
            mono_modal_responses(lambda s, m=model: m(torch.ones(2, 4)), TWO, model=model)
        assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize(
    ("forward", "modalities", "error", "match"),
    [
        (None, ["audio"], ValueError, r"\['audio'\], allowed: 2 to 10 different names"),
        (None, ["a", "b", "a"], ValueError, "allowed: 2 to 10 different names"),
        (None, map(str, range(11)), ValueError, "allowed: 2 to 10 different names"),
        (lambda s: None, TWO, TypeError, "`forward` returns NoneType, allowed: a floating-point"),
        (lambda s: torch.ones(2, 3).long(), TWO, TypeError, "`forward` returns torch.int64"),
        (
            lambda s: torch.ones(len(s), 3),
            TWO,
            ValueError,
            r"shape \[1, 3\] for \['audio'\], allowed: \[2, 3\], as for all modalities",
        ),
    ],
)
def test_bad_arguments(forward, modalities, error, match):
    with pytest.raises(error, match=match):
        mono_modal_responses(forward, modalities)


def test_masked_and_present_mask(device):
    inputs = {m: torch.randint(1, 9, (2, 3), device=device) for m in THREE}
    found = masked(inputs, {"visual"})
    assert list(found) == list(THREE)
    assert found["visual"] is inputs["visual"]
    assert not found["audio"].any()
    assert found["audio"].shape == (2, 3)
    for present in (set(), {"visual"}, {"audio", "text"}, set(THREE)):
        mask = present_mask(THREE, frozenset(present), device)
        assert (mask.dtype, mask.device.type) == (torch.bool, device)
        assert mask.tolist() == [m in present for m in THREE]
    for call in (lambda p: masked(inputs, p), lambda p: present_mask(THREE, p)):
        with pytest.raises(
            ValueError, match=r"`present` is \['smell'\], allowed: some of \['audio'"
        ):
            call({"smell"})


def heads(modalities):
    yield "concatenation", nn.Linear(6 * len(modalities), 4)
    yield "sum of features", nn.Linear(6, 4)
    yield "without bias", nn.Linear(6, 4, bias=False)
    yield "sum of heads", nn.ModuleDict({m: nn.Linear(6, 4) for m in modalities})


def joint(features, head):
    if isinstance(head, nn.ModuleDict):
        return sum(head[m](h) for m, h in features.items())
    values = list(features.values())
    return head(torch.cat(values, 1) if head.in_features > 6 else sum(values))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
@pytest.mark.parametrize("form", [form for form, _ in heads(TWO)])
def test_the_short_cut_equals_the_general_function(form, modalities, biased):
    """Values, and the gradients of anything that is done with them."""
    head = dict(heads(modalities))[form]
    encoders = nn.ModuleDict(
        {
            m: nn.Sequential(nn.Linear(networks.WIDTHS[m], 6, bias=biased), nn.Tanh())
            for m in modalities
        }
    )
    model = nn.ModuleList([encoders, head]).double()
    inputs, _ = networks.batch(modalities, dtype=torch.float64)

    def features(given):
        return {m: encoder(given[m]) for m, encoder in encoders.items()}

    absent = features({m: torch.zeros_like(x[:1]) for m, x in inputs.items()}) if biased else None
    given = dict(head.items()) if isinstance(head, nn.ModuleDict) else head
    found = late_fusion_responses(features(inputs), given, absent)
    general = mono_modal_responses(lambda s: joint(features(masked(inputs, s)), head), modalities)
    factor = {m: torch.randn(9, 4, dtype=torch.float64) for m in modalities}
    gradients = []
    for responses in (found, general):
        assert list(responses) == list(modalities)
        model.zero_grad()
        sum((responses[m] * factor[m]).sum() for m in modalities).backward()
        gradients.append([p.grad for p in model.parameters()])
    for m in modalities:  # sums of at most 2^M 40 terms of size 1: 320 eps
        torch.testing.assert_close(found[m], general[m], rtol=0, atol=1e-12)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)  # the same, over 9 samples


def test_the_short_cut_takes_a_vector_for_absence_and_half_precision():
    features = {m: torch.randn(5, 6).bfloat16() for m in TWO}
    head = nn.Linear(12, 4).bfloat16()
    rows = {m: torch.randn(1, 6).bfloat16() for m in TWO}
    found = late_fusion_responses(features, head, rows)
    flat = late_fusion_responses(features, head, {m: rows[m][0] for m in reversed(TWO)})
    for m in TWO:
        assert found[m].dtype == torch.float32
        assert torch.equal(found[m], flat[m])


@pytest.mark.parametrize(
    ("absent", "match"),
    [
        ({"audio": torch.ones(6)}, r"`absent` has \['audio'\], allowed: \['audio', 'visual'\]"),
        (
            {"audio": torch.ones(6), "visual": torch.ones(5, 6)},
            r"`absent\['visual'\]` has shape \[5, 6\], allowed: \[6\] or \[1, 6\]",
        ),
    ],
)
def test_bad_absence(absent, match):
    features = {m: torch.ones(5, 6) for m in TWO}
    with pytest.raises(ValueError, match=match):
        late_fusion_responses(features, nn.Linear(12, 4), absent)


@pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
def test_encoders_once_and_the_head_for_every_set(modalities):
    """A head of any kind: each encoder runs on the batch, and on one sample of zeros."""
    model = fusion.Intermediate(modalities).double().eval()
    inputs, _ = networks.batch(modalities, dtype=torch.float64)
    full = {m: encoder(inputs[m]) for m, encoder in model.encoders.items()}
    none = {m: model.encoders[m](torch.zeros_like(inputs[m][:1])) for m in modalities}

    def forward(present):
        return model.fuse(
            {m: full[m] if m in present else none[m].expand_as(full[m]) for m in full}
        )

    found = mono_modal_responses(forward, modalities)
    general = mono_modal_responses(lambda s: model(masked(inputs, s)), modalities)
    gradients = []
    for responses in (found, general):
        model.zero_grad()
        sum(i * r.square().sum() for i, r in enumerate(responses.values(), 1)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for m in modalities:
        torch.testing.assert_close(found[m], general[m], rtol=0, atol=1e-12)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
