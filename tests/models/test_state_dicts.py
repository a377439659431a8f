import copy

import pytest
import torch
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.models.state_dicts import parts, state_dicts, unwrapped
from condkd_ray.models.weights import read_weights


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


STATE = small().state_dict()


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (STATE, [""]),
        ({"state_dict": STATE, "epoch": 3}, ["state_dict"]),
        ({"anything": STATE, "acc": 0.9, "args": {"lr": 0.1}}, ["anything"]),
        ({"checkpoint": {"model": STATE, "epoch": 1}}, ["checkpoint/model"]),
        ({"model": STATE, "ema": STATE}, ["model", "ema"]),
        ({**STATE, "epoch": 5, "note": "best"}, [""]),
        ({"model": STATE, "metrics": {"loss": torch.tensor(0.1)}}, ["model"]),
        ({b"model": {name.encode(): tensor for name, tensor in STATE.items()}}, ["model"]),
        ([STATE], []),
        ({"epoch": 3}, []),
        ({}, []),
        (3, []),
    ],
)
def test_state_dicts_are_found_at_any_depth(content, keys):
    found = state_dicts(content)
    assert list(found) == keys
    assert all(weights.keys() == STATE.keys() for weights in found.values())


def test_the_state_of_an_optimizer_is_no_state_dict_of_a_network():
    network = small()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(4, 1, 3, 3)).sum().backward()
    optimizer.step()
    content = {"net": network.state_dict(), "optimizer": optimizer.state_dict(), "optimizers": [optimizer.state_dict()]}
    assert list(state_dicts(content)) == ["net"]


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "net.", "network.", "teacher.", "backbone.", "_orig_mod.", "module._orig_mod.model."],
)
def test_prefixes_of_wrappers_are_removed(prefix):
    assert unwrapped(under(prefix)).keys() == STATE.keys()


def test_prefixes_of_real_wrappers_are_removed():
    averaged = torch.optim.swa_utils.AveragedModel(small())
    assert unwrapped(averaged.state_dict()).keys() == STATE.keys()
    parts = copy.deepcopy(small())
    parts[0] = nn.DataParallel(parts[0])
    assert unwrapped(parts.state_dict()).keys() == STATE.keys()


def test_a_prefix_of_only_some_names_is_kept():
    mixed = {"module.weight": torch.ones(1), "bias": torch.ones(1)}
    assert unwrapped(mixed) == mixed
    alone = {"encoder.weight": torch.ones(1), "encoder.bias": torch.ones(1)}
    assert unwrapped(alone) == alone
    single = {"module": torch.ones(1)}
    assert unwrapped(single) == single


def test_recursive_and_very_deep_dictionaries_are_refused(tmp_path):
    content: dict = {"model": STATE}
    content["itself"] = {"again": content}
    with pytest.raises(InputError, match="dictionary is 'itself/again'; accepted: one that does not contain itself"):
        state_dicts(content)
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"^weights file .*w\.pt: dictionary is 'itself/again'"):
        read_weights(tmp_path / "w.pt")
    deep: dict = STATE
    for _ in range(2000):
        deep = {"a": deep}
    with pytest.raises(InputError, match="accepted: dictionaries nested at most 50 deep"):
        state_dicts(deep)
    assert list(state_dicts({"one": STATE, "other": STATE})) == ["one", "other"]


def test_names_with_too_many_parts_are_refused():
    with pytest.raises(InputError, match=r"number of parts of the name a\.a\..*\.\.\. is 100001; accepted: at most 50"):
        state_dicts({"model": {"a." * 100000 + "weight": torch.ones(1)}})


def test_parts_lists_the_names_after_each_prefix_with_outer_prefixes_first():
    assert [(prefix, sorted(part)) for prefix, part in parts(dict.fromkeys(("a.b.c", "a.d", "e"), torch.ones(1)))] == [
        ("", ["a.b.c", "a.d", "e"]),
        ("a", ["b.c", "d"]),
        ("a.b", ["c"]),
    ]
