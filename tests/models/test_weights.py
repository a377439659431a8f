import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toy import IMAGE_SHAPE, NUM_CLASSES, TEACHER

from condkd_ray.core.config import file_digest
from condkd_ray.core.method import InputError
from condkd_ray.models.weights import load_into, read_weights
from condkd_ray.trial.config import tensor_digest


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return TEACHER.build(IMAGE_SHAPE, NUM_CLASSES)


def wrapped(state: dict) -> dict:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.safetensors", lambda state: state),
        ("w.pt", lambda state: state),
        ("w.pth", lambda state: {"state_dict": state, "epoch": 3}),
        ("w.pt", wrapped),
        ("w.pt", lambda state: {"state_dict": wrapped(state)}),
        ("w.safetensors", wrapped),
    ],
)
def test_every_accepted_form_loads_the_same_weights(tmp_path, name, content):
    theirs, ours = network(1), network(2)
    state = content({k: v.contiguous() for k, v in theirs.state_dict().items()})
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    load_into(ours, read_weights(tmp_path / name), "weights")
    assert tensor_digest(ours.state_dict()) == tensor_digest(theirs.state_dict())


def test_a_prefix_of_some_names_only_is_part_of_the_names(tmp_path):
    torch.save({"module.weight": torch.ones(1), "bias": torch.ones(1)}, tmp_path / "w.pt")
    assert set(read_weights(tmp_path / "w.pt")) == {"module.weight", "bias"}


def test_files_without_the_counters_of_batches_fit():
    state = {k: v for k, v in network(1).state_dict().items() if not k.endswith("num_batches_tracked")}
    load_into(network(2), state, "weights")


def test_missing_unexpected_and_misshapen_names_stand_in_the_message():
    ours = network(0)
    state = dict(ours.state_dict())
    before = tensor_digest(state)
    del state["conv.weight"]
    state["fc.bias"] = torch.ones(4)
    state["classifier.bias"] = torch.ones(10)
    with pytest.raises(InputError) as caught:
        load_into(ours, state, "weights in w.pt")
    assert str(caught.value) == (
        "weights in w.pt do not fit the network: missing: conv.weight; unexpected: fc.bias; "
        "of another shape: classifier.bias (10,) for (4,)"
    )
    assert tensor_digest(ours.state_dict()) == before


def test_of_many_names_the_first_stand_in_the_message():
    with pytest.raises(InputError, match=r"missing: conv.weight, bn.weight, bn.bias and \d+ more"):
        load_into(network(0), {}, "weights")


class Harmful:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    torch.save({"state_dict": Harmful(tmp_path / "harm")}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w.pt cannot be read safely .*accepted: a safetensors file, or a .pt"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "harm").exists()


def a_module(path):
    torch.save(network(), path)


@pytest.mark.parametrize(
    "write",
    [
        a_module,
        lambda path: torch.save([torch.ones(1)], path),
        lambda path: torch.save({}, path),
        lambda path: torch.save({"epoch": 3}, path),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("weights"),
        lambda path: path.write_bytes(b"PK\x03\x04 cut off"),
    ],
    ids=["module", "list", "nothing", "numbers", "empty", "text", "cut"],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_is_no_state_dict_is_refused(tmp_path, write, name):
    write(tmp_path / name)
    with pytest.raises(InputError, match=rf"weights file .*{name} .*accepted: a safetensors file"):
        read_weights(tmp_path / name)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(InputError, match="which is no file; accepted"):
            read_weights(path)
    with pytest.raises(InputError, match="cannot be read"):
        file_digest(tmp_path / "none.pt")


def test_digests_change_with_each_part_and_only_then(tmp_path):
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(2)}
    digest = tensor_digest(weights)
    assert digest == tensor_digest(dict(reversed(weights.items())))
    last = torch.randn(2, 3, 4, 4)
    channels_last = last.contiguous(memory_format=torch.channels_last)
    assert tensor_digest({"a": last}) == tensor_digest({"a": channels_last})
    others = [
        {"a": torch.ones(3, 2), "b": torch.zeros(2)},
        {"a": torch.ones(2, 3), "c": torch.zeros(2)},
        {"a": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.int32)},
        {"a": torch.ones(2, 3), "b": torch.tensor([0.0, 1e-30])},
    ]
    assert len({digest, *map(tensor_digest, others)}) == 5
    for name, content in (("x", "a"), ("y", "a"), ("z", "b")):
        (tmp_path / name).write_text(content)
    assert file_digest(tmp_path / "x") == file_digest(tmp_path / "y") != file_digest(tmp_path / "z")
