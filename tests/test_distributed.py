"""Two ranks with different batches: the replicas stay equal, and see the mean of both."""

import copy
import os
import time
from datetime import timedelta

import networks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from modgrad import (
    OGM,
    BlendEstimator,
    FixedLossWeights,
    FixedWeights,
    GradientBlending,
    Modalities,
    ModulatedOptimizer,
    attach,
    gradients,
    late_fusion_logits,
    modality_scores,
)
from modgrad.distributed import mean_over_ranks

TWO = ("audio", "visual")


def join(rank, folder):
    """Meet the other rank through a file: no port that another program could take."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)


def leave():
    """End a rank without destructors: gloo's, under DDP's, can wait for ever for Python's lock."""
    dist.barrier()
    os._exit(0)


def run(function, *arguments):
    """The function on two ranks; a rank that hangs is a failure, not a wait without end."""
    context = torch.multiprocessing.spawn(function, arguments, nprocs=2, join=False)
    end = time.monotonic() + 240
    while not context.join(timeout=5):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail("the ranks did not finish in 240 s")


def train(rank, folder, at):
    join(rank, folder)
    torch.manual_seed(0)
    net = networks.LateFusion()
    modalities = Modalities(net, **net.specs())
    noise = 1.0 if at == "parameters" else 0.0
    model = DistributedDataParallel(net, broadcast_buffers=False)
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), modalities, OGM(0.8, noise), at=at
    )

    def forward(inputs):
        features = {m: encoder(inputs[m]) for m, encoder in net.encoders.items()}
        if at == "boundary":
            features = optimizer.modulator.scale_backward(features)
        return features, net.head(torch.cat(list(features.values()), dim=1))

    net.forward = forward  # DistributedDataParallel calls it
    torch.manual_seed(100 + rank)
    scores, seen = [], []
    for _ in range(5):
        inputs, targets = networks.batch(TWO, size=4 + 5 * rank)
        features, output = model(inputs)
        logits = list(late_fusion_logits(features, net.head).values())
        scores.append((len(targets) * modality_scores(logits, targets), len(targets)))
        optimizer.observe(features=features, head=net.head, targets=targets)
        optimizer.zero_grad()
        F.cross_entropy(output, targets).backward()
        optimizer.step()
        seen.append(optimizer.modulator.last.scores)
    parameters = [p.detach() for p in net.parameters()]
    torch.save({"parameters": parameters, "scores": scores, "seen": seen}, f"{folder}/{rank}.pt")
    leave()


@pytest.mark.parametrize("at", ["parameters", "boundary"])
def test_replicas_stay_equal(tmp_path, at):
    run(train, tmp_path, at)
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for p, q in zip(a["parameters"], b["parameters"], strict=True):
        assert torch.equal(p, q)
    for (sum_a, n_a), (sum_b, n_b), seen in zip(a["scores"], b["scores"], a["seen"], strict=True):
        torch.testing.assert_close(seen, (sum_a + sum_b) / (n_a + n_b))


def train_sharded(rank, folder):
    join(rank, folder)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = networks.LateFusion()
    modalities = Modalities(model, **model.specs())
    whole = copy.deepcopy(model)
    for encoder in model.encoders.values():
        fully_shard(encoder, mesh=mesh)
    fully_shard(model, mesh=mesh)
    weights = FixedWeights({"audio": 0.25, "visual": 2.0})
    optimizer = ModulatedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), modalities, weights)
    plain = torch.optim.SGD(whole.parameters(), lr=0.1)
    inputs, targets = networks.batch(TWO)
    F.cross_entropy(model(inputs)[1], targets).backward()
    optimizer.step()
    F.cross_entropy(whole(inputs)[1], targets).backward()
    for m, weight in weights.weights.items():
        for p in whole.encoders[m].parameters():
            p.grad.mul_(weight)
    plain.step()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.full_tensor(), q)
    measuring = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(measuring, modalities, weights, record=["grad_sq_norms"])
    F.cross_entropy(model(inputs)[1], targets).backward()
    with pytest.raises(NotImplementedError, match=r"sharded gradients.*allowed: scores"):
        measuring.step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    several = ModulatedOptimizer(optimizer, modalities, weights, losses=TWO)
    losses = dict.fromkeys(TWO, F.cross_entropy(model(inputs)[1], targets))
    with pytest.raises(NotImplementedError, match=r"several losses.*allowed: one loss"):
        several.backward(losses)
    (folder / str(rank)).touch()
    leave()


def train_several_losses(rank, folder, form):
    join(rank, folder)
    torch.manual_seed(0)
    net = networks.LateFusion()
    model = DistributedDataParallel(net)
    whole = form != "gradients"
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        Modalities(net, **net.specs()),
        FixedLossWeights((1.0, 0.5, 2.0)) if whole else FixedWeights({"audio": 0.5}),
        losses=("joint", *TWO),
        record=["losses" if whole else "gram"],
    )
    optimizer.modulator.enabled = form != "disabled"
    torch.manual_seed(100 + rank)
    for _ in range(3):
        inputs, targets = networks.batch(TWO)
        optimizer.zero_grad()
        with model.no_sync():
            features, output = model(inputs)
            logits = late_fusion_logits(features, net.head)
            losses = {name: F.cross_entropy(z, targets) for name, z in logits.items()}
            optimizer.backward({"joint": F.cross_entropy(output, targets), **losses})
        optimizer.step()
    last = optimizer.modulator.last
    measured = {} if last is None else {"gram": last.gram, "losses": last.losses}
    parameters = [p.detach() for p in net.parameters()]
    torch.save({"parameters": parameters, "measured": measured}, f"{folder}/{rank}.pt")
    leave()


@pytest.mark.parametrize("form", ["gradients", "whole losses", "disabled"])
def test_replicas_stay_equal_with_several_losses(tmp_path, form):
    run(train_several_losses, tmp_path, form)
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for p, q in zip(a["parameters"], b["parameters"], strict=True):
        assert torch.equal(p, q)
    for name, value in a["measured"].items():
        assert value is None or torch.equal(value, b["measured"][name])


def average_shared_memory(rank, folder):
    join(rank, folder)
    p, q, r = (torch.ones(3, requires_grad=True) for _ in range(3))
    loss = ((rank + 1) * (p + q)).sum() + (rank + 1) * r.sum()
    (grads,) = gradients.per_loss([loss], [p, q, r])
    found = gradients.averaged(grads, [p, q, r], None)
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


def test_gradients_in_one_memory_are_averaged_once(tmp_path):
    run(average_shared_memory, tmp_path)
    for rank in range(2):
        for grad in torch.load(tmp_path / f"{rank}.pt"):
            assert torch.equal(grad, torch.full((3,), 1.5))


def estimate_blending(rank, folder):
    join(rank, folder)
    torch.manual_seed(0)
    net = networks.LateFusion()
    model = DistributedDataParallel(net)
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        Modalities(net, **net.specs()),
        GradientBlending(),
        losses=("joint", *TWO),
    )
    start = copy.deepcopy(net.state_dict())
    torch.manual_seed(100 + rank)
    batches = [networks.batch(TWO, size=4 + 5 * rank) for _ in range(5)]
    trained = []

    def losses(model, batch):
        trained.append([p.detach().clone() for p in net.parameters()])
        inputs, targets = batch
        features, output = model(inputs)
        logits = {"joint": output, **late_fusion_logits(features, net.head)}
        return {name: F.cross_entropy(z, targets) for name, z in logits.items()}

    estimator = BlendEstimator(
        model, optimizer, losses, batches[:3], batches[3:], epochs=2, progress=False
    )
    found = estimator.estimate()
    for name, value in net.state_dict().items():
        assert torch.equal(value, start[name])
    torch.save({"found": found._asdict(), "trained": trained}, f"{folder}/{rank}.pt")
    leave()


def test_ranks_agree_on_an_estimate_of_gradient_blending(tmp_path):
    run(estimate_blending, tmp_path)
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert a["found"] == b["found"]
    for before, after in zip(a["trained"], b["trained"], strict=True):
        for p, q in zip(before, after, strict=True):
            assert torch.equal(p, q)


def test_gradients_sharded_by_fsdp2(tmp_path):
    run(train_sharded, tmp_path)
    assert {"0", "1"} <= {p.name for p in tmp_path.iterdir()}


def test_without_a_process_group_it_is_the_mean():
    assert mean_over_ranks(torch.tensor([6.0, 3.0]), 3, None).tolist() == [2, 1]
