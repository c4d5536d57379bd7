"""Blended cross entropies and the late-fusion head: sums and shares of modality_cross_entropy."""

import pytest
import torch
import torch.nn.functional as F

import modgrad

NAMES = ("audio", "visual", "text")


def features(device, widths=(5, 3, 4), dtype=torch.float64):
    return {
        name: torch.randn(6, D, device=device, dtype=dtype, requires_grad=True)
        for name, D in zip(NAMES, widths, strict=True)
    }


def head(device, in_features=12, bias=True):
    return torch.nn.Linear(in_features, 7, bias=bias).double().to(device)


def targets_on(device):
    return torch.randint(0, 7, (6,), device=device)


def gradients(loss, h, linear):
    return torch.autograd.grad(loss, [*h.values(), *linear.parameters()])


def test_blended_total_and_its_gradients(backend, device):
    logits = [torch.randn(6, 7, device=device, requires_grad=True) for _ in range(4)]
    targets, weights = targets_on(device), torch.rand(4, device=device)
    found = modgrad.blended_cross_entropy(
        logits, targets, weights, label_smoothing=0.1, backend=backend
    )
    each = torch.stack([F.cross_entropy(z, targets, label_smoothing=0.1) for z in logits])
    torch.testing.assert_close(found.losses, each)
    torch.testing.assert_close(found.total, weights @ each)
    torch.testing.assert_close(
        found.scores, modgrad.modality_scores(logits, targets, backend=backend)
    )
    expected = torch.autograd.grad(weights @ each, logits)
    torch.testing.assert_close(torch.autograd.grad(found.total, logits), expected)


def test_blending_weights_get_no_gradient(device):
    logits = [torch.randn(6, 7, device=device, requires_grad=True) for _ in range(2)]
    weights = torch.ones(2, device=device, requires_grad=True)
    modgrad.blended_cross_entropy(logits, targets_on(device), weights).total.backward()
    assert weights.grad is None


def test_blending_weights_of_another_size_are_an_error():
    with pytest.raises(ValueError, match=r"`weights` has shape \[3\], allowed: \[2\]"):
        modgrad.blended_cross_entropy(torch.randn(2, 6, 7), targets_on("cpu"), torch.ones(3))


@pytest.mark.parametrize("bias", [True, False])
def test_head_of_concatenated_features(backend, device, bias):
    h, linear, targets = features(device), head(device, bias=bias), targets_on(device)
    found = modgrad.late_fusion_head(h, linear.weight, linear.bias, targets, backend=backend)
    joint = linear(torch.cat(list(h.values()), dim=1))
    assert list(found.logits) == ["joint", *NAMES]
    torch.testing.assert_close(found.logits["joint"], joint)
    unimodal = modgrad.late_fusion_logits(h, linear)
    each = [F.cross_entropy(z, targets) for z in (joint, *unimodal.values())]
    torch.testing.assert_close(found.losses, torch.stack(each))
    # the joint loss alone trains
    expected = gradients(each[0], h, linear)
    for loss in (found.total, found.losses[0], found.losses.sum()):
        torch.testing.assert_close(
            torch.autograd.grad(loss, list(h.values()), retain_graph=True), expected[:3]
        )
    torch.testing.assert_close(gradients(found.total, h, linear), expected)


def test_head_whose_unimodal_losses_train_too(backend, device):
    h, linear, targets = features(device), head(device), targets_on(device)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0], device=device)
    found = modgrad.late_fusion_head(
        h, linear.weight, linear.bias, targets, weights, backend=backend
    )
    joint = linear(torch.cat(list(h.values()), dim=1))
    logits = (joint, *modgrad.late_fusion_logits(h, linear).values())
    total = weights.double() @ torch.stack([F.cross_entropy(z, targets) for z in logits])
    torch.testing.assert_close(found.total, total)
    torch.testing.assert_close(gradients(found.total, h, linear), gradients(total, h, linear))


def test_head_on_the_sum_of_features(backend, device):
    h, linear = features(device, (5, 5, 5)), head(device, 5)
    targets = targets_on(device)
    found = modgrad.late_fusion_head(
        list(h.values()), linear.weight, linear.bias, targets, backend=backend
    )
    assert list(found.logits) == ["joint", 0, 1, 2]
    expected = F.cross_entropy(linear(sum(h.values())), targets)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(gradients(found.total, h, linear), gradients(expected, h, linear))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_head_under_autocast(backend, device, dtype):
    h, targets = features(device, dtype=torch.float32), targets_on(device)
    linear = head(device).float()
    with torch.autocast(device, dtype=dtype):
        found = modgrad.late_fusion_head(h, linear.weight, linear.bias, targets, backend=backend)
        joint = linear(torch.cat(list(h.values()), dim=1))
    assert found.losses.dtype == torch.float32
    # products rounded to the dtype, then added twice in it; logits are a few units
    eps = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.total, F.cross_entropy(joint.float(), targets), rtol=eps, atol=eps
    )
    found.total.backward()
    assert linear.weight.grad.dtype == torch.float32


def test_head_compiles_without_a_graph_break(backend, device):
    h, linear, targets = features(device), head(device), targets_on(device)
    weights = torch.ones(4, device=device)

    def total(*h):
        return modgrad.late_fusion_head(
            h, linear.weight, linear.bias, targets, weights, backend=backend
        ).total

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    expected = gradients(total(*h.values()), h, linear)
    torch.testing.assert_close(gradients(compiled(*h.values()), h, linear), expected)


@pytest.mark.parametrize(
    ("h", "weights", "error", "match"),
    [
        ({"joint": torch.randn(6, 12)}, None, ValueError, "`features` has .*allowed: any name"),
        ([], None, ValueError, "`features` is empty"),
        ([torch.randn(6, 5)], None, ValueError, "`head` takes 12 features"),
        ([torch.randn(6, 12)], torch.ones(3), ValueError, r"`weights` has shape \[3\]"),
    ],
)
def test_bad_input(h, weights, error, match):
    linear = head("cpu").float()
    with pytest.raises(error, match=match):
        modgrad.late_fusion_head(h, linear.weight, linear.bias, targets_on("cpu"), weights)


RULE = modgrad.OGM(0.4).rule


@pytest.mark.parametrize("num_joint", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_balanced_gradients_are_weighted_by_the_rule_of_the_scores(
    backend, device, dtype, num_joint
):
    logits = [
        (3 * torch.randn(6, 7, device=device)).to(dtype).requires_grad_()
        for _ in range(3 + num_joint)
    ]
    targets = targets_on(device)
    found = modgrad.balanced_cross_entropy(
        logits, targets, RULE, num_joint=num_joint, label_smoothing=0.1, backend=backend
    )
    plain = modgrad.modality_cross_entropy(logits, targets, label_smoothing=0.1, backend=backend)
    assert torch.equal(found.losses, plain.losses)
    assert torch.equal(found.scores, plain.scores)
    weights, _ = modgrad.rule_weights(found.scores[num_joint:], RULE, backend="reference")
    expected = torch.cat([torch.ones(num_joint, device=device), weights[:, 0]])
    torch.testing.assert_close(found.weights, expected, rtol=2**-23, atol=0)
    assert (found.weights[num_joint:] < 1).any()
    upstream = torch.rand(len(logits), device=device).to(found.losses)
    again = modgrad.modality_cross_entropy(
        logits, targets, found.weights, label_smoothing=0.1, backend=backend
    )
    ours = torch.autograd.grad(found.losses, logits, upstream)
    assert all(map(torch.equal, ours, torch.autograd.grad(again.losses, logits, upstream)))
    assert not found.weights.requires_grad


def test_a_head_that_balances_is_ogm_at_the_boundary(backend, device):
    h, linear, targets = features(device), head(device), targets_on(device)
    found = modgrad.late_fusion_head(
        h, linear.weight, linear.bias, targets, rule=RULE, backend=backend
    )
    plain = modgrad.late_fusion_head(h, linear.weight, linear.bias, targets, backend=backend)
    weights, _ = modgrad.rule_weights(plain.scores[1:], RULE, backend="reference")
    torch.testing.assert_close(found.weights, weights[:, 0], rtol=2**-23, atol=0)
    assert (found.weights < 1).any()
    assert plain.weights is None
    expected = gradients(plain.total, h, linear)
    ours = gradients(found.total, h, linear)
    for m in range(3):
        torch.testing.assert_close(ours[m], weights[m, 0] * expected[m], rtol=2**-22, atol=0)
    assert all(map(torch.equal, ours[3:], expected[3:]))


def test_balanced_losses_compile_without_a_graph_break(backend, device):
    def loss(linear, targets, *h):
        fused = modgrad.late_fusion_head(
            list(h), linear.weight, linear.bias, targets, rule=RULE, backend=backend
        )
        each = modgrad.balanced_cross_entropy(
            [x[:, :3] for x in h], targets % 3, RULE, backend=backend
        )
        return fused.total + each.losses.sum()

    linear, targets = head(device), targets_on(device)
    h = list(features(device).values())
    expected = torch.autograd.grad(loss(linear, targets, *h), h)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(linear, targets, *h), h), expected)


@pytest.mark.parametrize(
    ("rule", "num_joint", "match"),
    [
        (modgrad.PCGrad().rule, 0, "`rule` 'pcgrad' reads a gram, allowed: one of scores"),
        (modgrad.Rule("ogm"), 0, "`rule` 'ogm' has 0 parameters"),
        (RULE, 2, "`num_joint` is 2 of 3 logits, allowed: at least 2 others"),
        (RULE, -1, "`num_joint` is -1"),
    ],
)
def test_rules_that_a_loss_cannot_follow(rule, num_joint, match):
    with pytest.raises(ValueError, match=match):
        modgrad.balanced_cross_entropy(
            torch.randn(3, 6, 7), targets_on("cpu"), rule, num_joint=num_joint
        )
