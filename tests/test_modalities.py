import pytest
import torch
from torch import nn

from modgrad import Modalities


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio_net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Linear(4, 5))
        self.visual_net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Linear(4, 5))
        self.head = nn.Linear(10, 3)


def names(modalities, model):
    by_id = {id(p): n for n, p in model.named_parameters()}
    parameters, group = modalities.assign(list(model.parameters()))
    return {by_id[id(p)]: modalities.names[g] for p, g in zip(parameters, group, strict=True)}


AUDIO = ["audio_net.0.weight", "audio_net.0.bias", "audio_net.1.weight", "audio_net.1.bias",
         "audio_net.2.weight", "audio_net.2.bias"]  # fmt: skip
VISUAL = ["visual_net.0.weight", "visual_net.1.weight", "visual_net.1.bias"]
BOTH = dict.fromkeys(AUDIO, "audio") | dict.fromkeys(VISUAL, "visual")


@pytest.mark.parametrize(
    "spec",
    [
        lambda m: {"audio": "audio_net.*", "visual": "visual_net"},
        lambda m: {"audio": m.audio_net, "visual": m.visual_net.parameters()},
        lambda m: {"audio": [m.audio_net[0], "audio_net.1.*", *m.audio_net[2].parameters()],
                   "visual": ("visual_net.0.weight", m.visual_net[1].weight, m.visual_net[1].bias)},
    ],
    ids=["patterns", "modules and iterables", "mixed lists"],
)  # fmt: skip
def test_ways_to_say_the_same(spec):
    model = Net()
    assert names(Modalities(model, **spec(model)), model) == BOTH


def test_order_is_the_optimizers():
    model = Net()
    held = list(model.parameters())[::-1]
    parameters, group = Modalities(model, audio="audio_net", visual="visual_net").assign(held)
    assert [id(p) for p in parameters] == [id(p) for p in held[2:]]  # the head comes first
    assert group == [1, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ({"audio": "audio_net", "visual": "*net*"}, ValueError, "is in `audio` and in `visual`"),
        (
            {"audio": "audio.*"},
            ValueError,
            r"pattern 'audio.\*' matches no parameter; near it: audio_net",
        ),
        ({"audio": "zzzz"}, ValueError, "matches no parameter; the model has: audio_net.0.weight"),
        ({"audio": nn.Linear(2, 2)}, ValueError, "holds a parameter that is not in the model"),
        ({"audio": nn.ReLU()}, ValueError, "`audio` has no parameters"),
        ({"audio": []}, ValueError, "`audio` has no parameters"),
        ({"audio": 3}, TypeError, "`audio` is int, allowed: a pattern, a module"),
        ({"audio": {"a": 1}}, TypeError, "`audio` is dict"),
        ({}, ValueError, "no modalities are given"),
    ],
)
def test_bad_specs(spec, error, match):
    with pytest.raises(error, match=match):
        Modalities(Net(), **spec)


def test_tied_parameter_under_two_names_is_an_overlap():
    model = nn.ModuleDict({"audio": nn.Linear(3, 3), "text": nn.Linear(3, 3)})
    model["text"].weight = model["audio"].weight
    with pytest.raises(ValueError, match=r"'audio.weight' is in `audio` and in `text`"):
        Modalities(model, audio="audio.*", text="text.*")


def test_optimizer_that_lacks_a_parameter():
    model = Net()
    modalities = Modalities(model, audio="audio_net", visual="visual_net")
    with pytest.raises(ValueError, match=r"does not hold 'visual_net.0.weight' of `visual`"):
        modalities.assign(list(model.audio_net.parameters()))
    model.visual_net.requires_grad_(False)
    assert modalities.assign(list(model.audio_net.parameters())).group == [0] * 6


def test_replaced_parameters_are_found_by_name():
    model = Net()
    modalities = Modalities(model, audio=model.audio_net, visual=model.visual_net)
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(p.detach().clone()))  # as FSDP2 does
    assert names(modalities, model) == BOTH


def test_wrappers_do_no_harm():
    model = Net()
    compiled = torch.compile(model, backend="eager")
    before = names(Modalities(compiled, audio="audio_net", visual="visual_net"), model)
    parallel = names(
        Modalities(nn.DataParallel(compiled), audio="audio_net", visual="visual_net"), model
    )
    assert before == parallel == BOTH


def test_table_shows_exactly_what_is_touched():
    model = Net()
    model.visual_net[1].requires_grad_(False)
    table = str(Modalities(model, audio=["audio_net.0", "audio_net.1.weight"], visual="visual_net"))
    rows = {line.split()[0]: line.split() for line in table.splitlines()[2:]}
    assert rows["audio"][1:] == ["3", "10", "0", "audio_net.0.*"]
    assert rows["audio_net.1.weight"]
    assert rows["visual"][1:] == ["3", "43", "25", "visual_net.*"] or rows["visual"][3] == "2"
    assert rows["(shared)"][1] == "5"
    assert "head.*" in table
    assert "audio_net.1.bias" in table
    assert "audio_net.2.*" in table
