import inputs
import pytest
import torch
import updates
from updates import WEIGHTS, like

import modgrad

LR, BETAS, EPS, DECAY = 0.1, (0.8, 0.95), 1e-6, 0.05
ADAMS = {"adam": modgrad.modulated_adam_, "adamw": modgrad.modulated_adamw_}
TORCH = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
STATES = [(d, d) for d in inputs.DTYPES] + [
    (d, torch.float32) for d in (torch.float64, torch.float16, torch.bfloat16)
]


def weights(device):
    return torch.tensor(WEIGHTS, device=device)


def run_adam(kind, arguments, group, w, backend, **options):
    params, grads, first, second, largest, steps = arguments
    ADAMS[kind](
        *(params, grads, first, second, steps, group, w),
        **dict(lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, max_exp_avg_sqs=largest),
        **dict(backend=backend) | options,
    )


@pytest.mark.parametrize("options", [{}, {"apply": "update"}, {"maximize": True}], ids=str)
@pytest.mark.parametrize(("dtype", "state_dtype"), STATES, ids=str)
@pytest.mark.parametrize("kind", ADAMS)
def test_adam_in_float64(backend, device, kind, dtype, state_dtype, options):
    amsgrad = kind == "adam"
    arguments = updates.adam(backend, device, dtype, state_dtype, amsgrad)
    group = updates.groups(len(arguments[0]))
    before = [[inputs.float64(t.clone()) for t in tensors] for tensors in arguments]
    run_adam(kind, arguments, group, weights(device), backend, **options)
    params, grads, first, second, largest, steps = arguments
    for i, g in enumerate(group):
        w = WEIGHTS[g] if g >= 0 else 1.0
        lr = LR * w if options.get("apply") == "update" else LR
        p, _, m, v, *_ = (tensors[i] for tensors in before[:4])
        expected = updates.numpy_adam(
            *(p, updates.numpy_gradient(grads[i], w, options), m, v),
            *(before[4][i] if amsgrad else None, before[5][i]),
            *(lr, *BETAS, EPS, DECAY, kind == "adamw"),
        )
        assert steps[i].item() == before[5][i] + 1
        # some 20 operations; the quotient of the moments is up to 20 here
        for found, exact in zip((params, first, second, largest), expected, strict=True):
            if found:
                updates.assert_near(found[i], exact, dtype, 400)


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["plain", "momentum"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"apply": "update"},
        {"maximize": True, "dampening": 0.3},
        {"nesterov": True},
        {"is_first_step": True, "dampening": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "state_dtype"), STATES, ids=str)
def test_sgd_in_float64(backend, device, dtype, state_dtype, options, momentum):
    if options.get("nesterov") and not momentum:
        return
    params = inputs.tensors(backend, dtype, device)
    grads = like(params)
    buffers = like(params, state_dtype) if momentum else []
    first = options.get("is_first_step", False)
    old = [[inputs.float64(t.clone()) for t in tensors] for tensors in (params, buffers)]
    if first:
        for b in buffers:
            b.fill_(float("nan"))
    group = updates.groups(len(params))
    modgrad.modulated_sgd_(
        *(params, grads, buffers, group, weights(device)),
        **dict(lr=LR, momentum=momentum, weight_decay=DECAY, backend=backend) | options,
    )
    for i, g in enumerate(group):
        w = WEIGHTS[g] if g >= 0 else 1.0
        lr = LR * w if options.get("apply") == "update" else LR
        p, b = updates.numpy_sgd(
            *(old[0][i], updates.numpy_gradient(grads[i], w, options)),
            *(old[1][i] if momentum else None, lr, momentum, options.get("dampening", 0.0)),
            *(DECAY, options.get("nesterov", False), first),
        )
        updates.assert_near(params[i], p, dtype, 40)  # some 10 operations on terms up to 4
        if momentum:
            updates.assert_near(buffers[i], b, dtype, 40)


@pytest.mark.parametrize("lr", [0.0, 0.25, 512.0])
def test_every_float16_is_widened_and_rounded_as_it_should(backend, device, lr):
    """A power of two as the rate makes the product exact: both sides round the difference alike.
    65,536 elements and a few, so that no instruction's width divides the tensor."""
    if backend == "triton":
        pytest.skip("for other backends: 65,536 elements take the interpreter minutes")
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    every = torch.cat([bits, bits[:13]]).view(torch.float16).to(device)
    every[every.isnan()] = float("nan")  # one of them: payloads are nobody's business
    p, g = every.clone(), every[torch.randperm(len(every))]
    expected = (p.float() - lr * g.float()).half()
    modgrad.modulated_sgd_(
        *([p], [g], [], [0], torch.ones(1, device=device)), lr=lr, backend=backend
    )
    torch.testing.assert_close(p, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fused", [False, True], ids=["loop", "fused"])
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
@pytest.mark.parametrize("maximize", [False, True], ids=["", "maximize"])
@pytest.mark.parametrize("kind", ADAMS)
def test_weights_of_one_continue_torchs_adam(
    backend, device, kind, maximize, amsgrad, tensor_lr, fused
):
    """Torch's state tensors go in, torch's next states come out: checkpoints are the same."""
    lr = torch.tensor(0.01, device=device) if tensor_lr else 0.01
    ours, theirs = ([torch.nn.Parameter(torch.full((33,), 0.5)) for _ in range(2)] for _ in "ab")
    ours = [torch.nn.Parameter(p.detach().to(device)) for p in ours]
    theirs = [torch.nn.Parameter(p.detach().to(device)) for p in theirs]
    options = dict(lr=lr, betas=BETAS, eps=EPS, weight_decay=DECAY, maximize=maximize)
    optimizers = [
        TORCH[kind](ps, amsgrad=amsgrad, foreach=False, fused=fused, **options)
        if fused
        else TORCH[kind](ps, amsgrad=amsgrad, foreach=False, **options)
        for ps in (ours, theirs)
    ]
    for step in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizers[1].step()
        if step == 0:
            optimizers[0].step()
            continue
        state = [optimizers[0].state[p] for p in ours]
        steps = [s["step"].to(device) for s in state]
        ADAMS[kind](
            *(ours, [p.grad for p in ours], [s["exp_avg"] for s in state]),
            *([s["exp_avg_sq"] for s in state], steps, [0, -1], torch.ones(1, device=device)),
            max_exp_avg_sqs=[s["max_exp_avg_sq"] for s in state] if amsgrad else (),
            **options,
            backend=backend,
        )
        for s, t in zip(state, steps, strict=True):
            s["step"].copy_(t)
    for p, q in zip(ours, theirs, strict=True):
        # 5 steps of 20 roundings on numbers below 1
        torch.testing.assert_close(p, q, rtol=0, atol=100 * inputs.EPS[torch.float32])
        a, b = optimizers[0].state[p], optimizers[1].state[q]
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True], ids=["loop", "fused"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.2},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "maximize": True},
    ],
    ids=str,
)
def test_weights_of_one_are_torchs_sgd(backend, device, options, fused):
    ours = [torch.randn(33, device=device), torch.randn(4, 3, device=device)]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    options = dict(lr=0.1, weight_decay=DECAY, **options)
    optimizer = torch.optim.SGD(theirs, fused=fused, **options)
    buffers = [torch.full_like(p, float("nan")) for p in ours] if "momentum" in options else []
    for step in range(4):
        for q in theirs:
            q.grad = torch.randn_like(q)
        grads = [q.grad.clone() for q in theirs]
        optimizer.step()
        modgrad.modulated_sgd_(
            *(ours, grads, buffers, [0, 0], torch.ones(1, device=device)),
            **options,
            is_first_step=step == 0,
            backend=backend,
        )
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        # 4 steps of 10 roundings on numbers below 8
        torch.testing.assert_close(p, q.detach(), rtol=0, atol=320 * inputs.EPS[torch.float32])
        if buffers:
            buffer = optimizer.state[q]["momentum_buffer"]
            torch.testing.assert_close(buffers[i], buffer, rtol=1e-5, atol=1e-5)
