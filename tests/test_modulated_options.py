"""What the fused updates take beside torch's arguments: scaling, skipping, noise, norms."""

import inputs
import pytest
import torch
import updates
from test_modulated_updates import ADAMS, run_adam, weights
from updates import M, like

import modgrad


def sgd(params, grads, group, w, backend, **options):
    modgrad.modulated_sgd_(params, grads, [], group, w, lr=1.0, backend=backend, **options)


def clones(lists):
    return [[t.clone() for t in tensors] for tensors in lists]


def test_grad_scale_divides_and_gradients_stay(backend, device):
    params = inputs.tensors(backend, torch.float32, device)
    grads, group = like(params), updates.groups(len(params))
    scaled = [g * 1024 for g in grads]
    kept = clones([scaled])[0]
    expected = [p.clone() for p in params]
    scale = torch.tensor([1024.0], device=device)
    sgd(expected, grads, group, weights(device), backend)
    sgd(params, scaled, group, weights(device), backend, grad_scale=scale)
    for a, b, x, y in zip(params, expected, scaled, kept, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", ADAMS)
def test_found_inf_changes_nothing(backend, device, kind):
    arguments = updates.adam(backend, device, torch.float32, amsgrad=True)
    arguments[1][0].fill_(float("inf"))
    before = clones(arguments)
    sq_norms = torch.full((2, M), 7.0, dtype=torch.float64, device=device)
    group = updates.groups(len(arguments[0]))
    found_inf = torch.ones(1, device=device)
    options = {"found_inf": found_inf, "sq_norms": sq_norms}
    run_adam(kind, arguments, group, weights(device), backend, **options)
    for tensors, old in zip(arguments, before, strict=True):
        assert all(map(torch.equal, tensors, old))
    assert (sq_norms == 7).all()
    buffers = clones([arguments[0]])[0]
    modgrad.modulated_sgd_(
        *(arguments[0], arguments[1], buffers, group, weights(device)),
        **dict(lr=0.1, momentum=0.9, is_first_step=True, found_inf=found_inf, backend=backend),
    )
    assert all(map(torch.equal, arguments[0], before[0]))
    assert all(map(torch.equal, buffers, before[0]))
    run_adam(kind, arguments, group, weights(device), backend, found_inf=0 * found_inf)
    assert arguments[5][0] == before[5][0] + 1


@pytest.mark.parametrize("apply", ["gradient", "update"])
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_noise_is_that_of_modulate(backend, device, dtype, apply):
    params = [torch.zeros_like(t) for t in inputs.tensors(backend, dtype, device)]
    grads, group = like(params), [i % M for i in range(len(params))]
    noise = torch.tensor([1.0, 0.0, 0.5], device=device)
    w = torch.ones(M, device=device) if apply == "update" else weights(device)
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    wide = [g.clone().to(precision) for g in grads]
    modgrad.modulate_(wide, group, w, noise, 11, backend="reference")
    sgd(
        *(params, grads, group, w, backend),
        **dict(noise=noise, seed=11, apply=apply, maximize=True),
    )
    for p, x in zip(params, wide, strict=True):
        # log, sqrt and cos differ by a few units in the last place of float32; then one rounding
        updates.assert_near(p, inputs.float64(x), torch.float32, 64)


def test_streams_number_the_noise(backend, device):
    grad = torch.arange(100.0, device=device)
    one = torch.ones(1, device=device)

    def noisy(count, **options):
        params = [torch.zeros(100, device=device) for _ in range(count)]
        sgd(params, [grad] * count, [0] * count, one, backend, noise=one, seed=3, **options)
        return params

    together = noisy(3)
    assert torch.equal(noisy(1, stream=[2])[0], together[2])
    assert torch.equal(noisy(1)[0], together[0])
    assert not torch.isclose(together[0], together[2]).any()
    shared = torch.zeros(100, device=device)
    sgd([shared], [grad], [-1], one, backend, noise=one, seed=3)
    assert torch.equal(shared, -grad)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_norms_are_of_this_steps_gradients_and_the_old_parameters(backend, device, dtype):
    params = inputs.tensors(backend, dtype, device)
    grads, group = like(params), updates.groups(len(params))
    expected = torch.zeros(2, M, dtype=torch.float64, device=device)
    for p, x, g in zip(params, grads, group, strict=True):
        if g >= 0:
            expected[0, g] += (x.double() / 8).square().sum()
            expected[1, g] += p.double().square().sum()
    found = []
    for _ in range(2):
        sq_norms = torch.full((2, M), float("nan"), dtype=torch.float64, device=device)
        sgd(
            *([p.clone() for p in params], grads, group, weights(device), backend),
            **dict(grad_scale=torch.tensor(8.0, device=device), sq_norms=sq_norms),
        )
        found.append(sq_norms)
    assert torch.equal(*found)
    # sums of 1e5 squares in float64
    torch.testing.assert_close(found[0], expected, rtol=1e-11, atol=0)


def test_the_number_of_threads_changes_no_bit(backend, device):
    arguments = updates.adam(backend, device, torch.float32, amsgrad=True)
    other, threads = clones(arguments), torch.get_num_threads()
    group = updates.groups(len(other[0]))
    run_adam("adamw", arguments, group, weights(device), backend)
    torch.set_num_threads(1)
    try:
        run_adam("adamw", other, group, weights(device), backend)
    finally:
        torch.set_num_threads(threads)
    for tensors, same in zip(arguments, other, strict=True):
        assert all(map(torch.equal, tensors, same))


def test_mixed_memory_orders_and_gaps(backend, device):
    """Parameters, gradients and states that agree in shape only."""
    shape = (2, 3, 4, 5)
    whole = torch.randn(6, 8, device=device)
    params = [
        torch.randn(shape, device=device).to(memory_format=torch.channels_last),
        whole[:, ::2],
    ]
    grads = [torch.randn(shape, device=device), torch.randn(6, 4, device=device).t().clone().t()]
    buffers = [torch.randn(shape, device=device), torch.randn(6, 4, device=device)]
    gaps = whole[:, 1::2].clone()
    options = dict(lr=0.5, momentum=0.9, backend=backend)
    b = [0.9 * old + g for old, g in zip(buffers, grads, strict=True)]
    expected = [p - 0.5 * x for p, x in zip(params, b, strict=True)]
    modgrad.modulated_sgd_(params, grads, buffers, [0, 0], torch.ones(1, device=device), **options)
    torch.testing.assert_close(params, expected)
    torch.testing.assert_close(buffers, b)
    assert torch.equal(whole[:, 1::2], gaps)


def test_leaves_are_changed_in_place_and_their_versions_move(backend, device):
    param = torch.nn.Parameter(torch.ones(3, device=device))
    version = param._version
    sgd([param], [torch.ones(3, device=device)], [0], torch.ones(1, device=device), backend)
    assert param.tolist() == [0, 0, 0]
    assert param._version > version
    assert param.requires_grad


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"group": [0, 1]}, r"`group\[1\]` is 1, outside \[-1, 1\)"),
        ({"group": [0]}, "`group` has 1 entries, allowed: 2"),
        ({"grads": [torch.ones(2), torch.ones(3)]}, r"`grads\[1\]` is torch.float32 \[3\]"),
        ({"grads": [torch.ones(2), torch.ones(2).half()]}, r"`grads\[1\]` is torch.float16"),
        ({"momentum_buffers": []}, "`momentum_buffers` has 0 entries, allowed with momentum 0.9"),
        ({"momentum_buffers": [torch.ones(2)] * 1}, "`momentum_buffers` has 1 entries, allowed: 2"),
        ({"weights": torch.ones(1, 1)}, r"`weights` has shape \[1, 1\]"),
        ({"lr": -0.1}, "`lr` is -0.1"),
        ({"lr": torch.ones(2)}, r"`lr` is torch.float32 \[2\]"),
        ({"nesterov": True, "dampening": 0.5}, "`nesterov` is True"),
        ({"apply": "both"}, "`apply` is 'both', allowed: 'gradient', 'update'"),
        ({"noise": ONE}, "`seed` is None"),
        ({"seed": 3}, "`seed` is given without `noise`"),
        ({"stream": [1]}, "`stream` has 1 entries, allowed: 2"),
        ({"grad_scale": ONE.double()}, r"`grad_scale` is torch.float64 \[1\]"),
        ({"found_inf": True}, "`found_inf` is bool"),
        ({"sq_norms": torch.ones(2, 1)}, r"`sq_norms` is torch.float32 \[2, 1\]"),
    ],
)
def test_bad_arguments_change_nothing(change, match):
    params = [torch.ones(2), torch.ones(2)]
    arguments = {
        "grads": [torch.ones(2), torch.ones(2)],
        "momentum_buffers": [torch.ones(2), torch.ones(2)],
        "group": [0, 0],
        "weights": ONE.clone(),
        **dict(lr=0.1, momentum=0.9),
    } | change
    with pytest.raises(ValueError, match=match):
        modgrad.modulated_sgd_(params, **arguments)
    assert all(p.tolist() == [1, 1] for p in params)


def test_bad_states_change_nothing():
    params, ones = [torch.ones(2)], [torch.ones(2)]
    steps = [torch.zeros(())]
    for name, second, step, match in [
        ("shape", [torch.ones(3)], steps, r"`exp_avg_sqs\[0\]` is torch.float32 \[3\]"),
        ("dtype", [torch.ones(2).double()], steps, r"`exp_avg_sqs\[0\]` is torch.float64"),
        ("steps", ones, [torch.zeros(2)], r"`state_steps\[0\]` is torch.float32 \[2\]"),
        ("steps", ones, [torch.zeros(()).double()], r"`state_steps\[0\]` is torch.float64"),
        ("steps", ones, [], "`state_steps` has 0 entries"),
    ]:
        with pytest.raises(ValueError, match=match):
            modgrad.modulated_adam_(params, ones, ones, second, step, [0], ONE.clone(), lr=0.1)
        assert params[0].tolist() == [1, 1], name
    with pytest.raises(ValueError, match=r"`betas\[1\]` is 1.0, allowed: \[0, 1\)"):
        modgrad.modulated_adam_(
            params, ones, ones, ones, steps, [0], ONE.clone(), lr=0.1, betas=(0.9, 1.0)
        )


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_weights_by_a_rule_are_of_this_steps_gradients(backend, device, dtype):
    rule = modgrad.EqualNorms(power=0.5).rule
    params = inputs.tensors(backend, dtype, device)
    grads, group = like(params), updates.groups(len(params))
    grads = [x * (1 + 3 * g) for x, g in zip(grads, group, strict=True)]
    scale = torch.tensor(8.0, device=device)
    own = [i for i, g in enumerate(group) if g >= 0]
    sums = modgrad.group_sq_norms([grads[i] for i in own], [group[i] for i in own], M)
    exact, _ = modgrad.rule_weights(sums[:, None, None] / 64, rule, backend="reference")
    assert (exact != 1).all()
    expected = [p.clone() for p in params]
    found = torch.full((M,), float("nan"), device=device)
    sq_norms = torch.full((2, M), float("nan"), dtype=torch.float64, device=device)
    options = {"grad_scale": scale, "sq_norms": sq_norms}
    sgd(params, grads, group, found, backend, rule=rule, **options)
    # sums of 1e5 squares in float64, rounded to float32
    torch.testing.assert_close(found, exact[:, 0], rtol=2**-23, atol=0)
    torch.testing.assert_close(sq_norms[0], sums / 64, rtol=1e-11, atol=0)
    sgd(expected, grads, group, found, backend, grad_scale=scale)
    assert all(map(torch.equal, params, expected))


@pytest.mark.parametrize("kind", ADAMS)
def test_a_rule_in_adam_and_in_a_step_that_is_skipped(backend, device, kind):
    rule = modgrad.EqualNorms().rule
    arguments = updates.adam(backend, device, torch.float32, amsgrad=True)
    known, group = clones(arguments), updates.groups(len(arguments[0]))
    found = torch.full((M,), 7.0, device=device)
    before = clones(arguments)
    skip = torch.ones(1, device=device)
    run_adam(kind, arguments, group, found, backend, rule=rule, found_inf=skip)
    assert (found == 7).all()
    for tensors, old in zip(arguments, before, strict=True):
        assert all(map(torch.equal, tensors, old))
    run_adam(kind, arguments, group, found, backend, rule=rule)
    assert (found != 7).all()
    run_adam(kind, known, group, found, backend)
    for tensors, others in zip(arguments, known, strict=True):
        assert all(map(torch.equal, tensors, others))


@pytest.mark.parametrize(
    ("rule", "w", "match"),
    [
        (modgrad.PCGrad().rule, torch.ones(1), "`rule` is 'pcgrad', allowed: one of norms"),
        (modgrad.OGM().rule, torch.ones(1), "`rule` is 'ogm'"),
        (
            modgrad.EqualNorms().rule,
            torch.ones(1).double(),
            "`weights` is torch.float64",
        ),
        (modgrad.EqualNorms().rule, torch.ones(4)[::2], r"of stride \(2,\), allowed with `rule`"),
    ],
)
def test_rules_that_an_update_cannot_follow(rule, w, match):
    params = [torch.ones(3)]
    with pytest.raises(ValueError, match=match):
        sgd(params, [torch.ones(3)], [0], w, None, rule=rule)
    assert (params[0] == 1).all()
