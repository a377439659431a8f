import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toy import IMAGE_SHAPE, NUM_CLASSES, TEACHER

from condkd_ray.core.config import file_digest
from condkd_ray.core.method import InputError
from condkd_ray.models import DeepLabResNet, label
from condkd_ray.models.resnet import ResNet
from condkd_ray.models.weights import fitted, load_into, located, read_weights, recognised, weights_digest
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


def test_state_dicts_without_batch_counters_fit():
    state = {k: v for k, v in network(1).state_dict().items() if not k.endswith("num_batches_tracked")}
    load_into(network(2), state, "weights")


def test_the_message_lists_missing_unexpected_and_misshapen_names():
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


def test_the_message_lists_only_the_first_of_many_names():
    with pytest.raises(InputError, match=r"missing: conv.weight, bn.weight, bn.bias and \d+ more"):
        load_into(network(0), {}, "weights")


class Harmful:
    """An object whose unpickling would create a folder."""

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
def test_files_without_a_state_dict_are_refused(tmp_path, write, name):
    write(tmp_path / name)
    with pytest.raises(InputError, match=rf"weights file .*{name} .*accepted: a safetensors file"):
        read_weights(tmp_path / name)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(InputError, match="which is no file; accepted"):
            read_weights(path)
    with pytest.raises(InputError, match="cannot be read"):
        file_digest(tmp_path / "none.pt")


def test_digests_depend_on_exactly_names_shapes_types_and_values(tmp_path):
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


def changed(name: str, value: float) -> dict:
    state = {key: tensor.clone() for key, tensor in network(1).state_dict().items()}
    state[name].view(-1)[0] = value
    return state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(tmp_path, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network(1).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}
    load_into(ours := network(2), fitted(ours, tmp_path / "w.pt").weights, "weights")
    assert torch.equal(ours.state_dict()["conv.weight"], state["conv.weight"].float())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("stages.2.0.conv2.weight", float("nan"), "stages.2.0.conv2.weight has 1 NaN or infinite"),
        ("classifier.bias", float("inf"), "classifier.bias has 1 NaN or infinite"),
        ("bn.running_mean", float("-inf"), "bn.running_mean has 1 NaN or infinite"),
        ("stages.0.0.bn1.running_var", -0.5, "stages.0.0.bn1.running_var has a variance of -0.5; accepted: variances"),
    ],
)
def test_invalid_values_are_refused_with_their_names(tmp_path, name, value, expected):
    torch.save(changed(name, value), tmp_path / "w.pt")
    with pytest.raises(InputError, match=f"weights in .*w.pt: {expected}"):
        fitted(network(), tmp_path / "w.pt")


def test_doubles_beyond_float32_are_infinite(tmp_path):
    state = network(1).double().state_dict()
    state["conv.weight"][0, 0, 0, 0] = 1e300
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"conv.weight has 1 NaN or infinite"):
        fitted(network(), tmp_path / "w.pt")


def test_a_variance_of_zero_gives_a_note(tmp_path):
    torch.save(changed("bn.running_var", 0.0), tmp_path / "w.pt")
    assert fitted(network(), tmp_path / "w.pt").notes == (
        f"weights in {tmp_path / 'w.pt'}: variances of 0 in bn.running_var",
    )


def test_with_several_fitting_state_dicts_one_must_be_named(tmp_path):
    path, first, second = tmp_path / "w.pt", network(1).state_dict(), network(2).state_dict()
    torch.save({"state_dict": first, "state_dict_ema": second, "head": {"weight": torch.ones(2)}}, path)
    expected = r"several state dicts that fit; accepted: one of them, .*w.pt#state_dict, .*w.pt#state_dict_ema$"
    with pytest.raises(InputError, match=expected):
        fitted(network(), path)
    for key, state in (("state_dict", first), ("state_dict_ema", second)):
        named = Path(f"{path}#{key}")
        assert tensor_digest(fitted(network(), named).weights) == tensor_digest(state)
        assert tensor_digest(read_weights(named)) == tensor_digest(state)
    with pytest.raises(InputError, match=r"state dict in weights file .*w.pt is 'ema'; accepted: .*w.pt#state_dict, "):
        fitted(network(), Path(f"{path}#ema"))
    assert len({weights_digest(Path(f"{path}{key}")) for key in ("", "#state_dict", "#state_dict_ema")}) == 3
    assert weights_digest(path) == file_digest(path)


def test_the_only_fitting_state_dict_of_several_is_used_with_a_note(tmp_path):
    path, state = tmp_path / "w.pt", network(1).state_dict()
    torch.save({"net": state, "head": {"weight": torch.ones(2)}}, path)
    found = fitted(network(), path)
    assert tensor_digest(found.weights) == tensor_digest(state)
    assert found.notes == (f"weights in {path} are read from 'net'",)
    torch.save({"net": state, "ema": state}, path)
    assert tensor_digest(fitted(network(), path).weights) == tensor_digest(state)


def test_a_file_with_a_hash_sign_in_its_name_is_read(tmp_path):
    torch.save(network(1).state_dict(), tmp_path / "run#3.pt")
    assert located(tmp_path / "run#3.pt") == (tmp_path / "run#3.pt", "")
    assert located(tmp_path / "run#3.pt#a/b") == (tmp_path / "run#3.pt", "a/b")
    assert located(tmp_path / "none.pt#a") == (tmp_path / "none.pt#a", "")
    fitted(network(), tmp_path / "run#3.pt")


class Inside(nn.Module):
    """A network with a child of the name that wrappers often use."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)

    def forward(self, x):
        return self.model(x)


def test_a_prefix_that_belongs_to_the_network_is_kept(tmp_path):
    torch.save({"net": Inside().state_dict()}, tmp_path / "w.pt")
    assert fitted(Inside(), tmp_path / "w.pt").weights.keys() == {"model.weight", "model.bias"}


def test_numbers_of_another_kind_are_refused(tmp_path):
    state = network(1).state_dict()
    state["conv.weight"] = state["conv.weight"].to(torch.int8)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"of another type: conv.weight torch.int8 for torch.float32"):
        fitted(network(), tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_values_are_refused_and_sparse_ones_are_read(tmp_path):
    state = network(1).state_dict()
    for kind, tensor in (
        ("on the meta device", torch.empty(4, 1, 3, 3, device="meta")),
        ("quantised", torch.quantize_per_tensor(state["conv.weight"], 0.1, 0, torch.qint8)),
        ("complex", state["conv.weight"].to(torch.complex64)),
    ):
        torch.save(state | {"conv.weight": tensor}, tmp_path / "w.pt")
        with pytest.raises(InputError, match=rf"w.pt: conv.weight is {kind}; accepted: tensors of finite floats"):
            fitted(network(), tmp_path / "w.pt")
    torch.save(state | {"classifier.weight": state["classifier.weight"].to_sparse()}, tmp_path / "w.pt")
    assert tensor_digest(fitted(network(), tmp_path / "w.pt").weights) == tensor_digest(state)


class Lit(nn.Module):
    """Like a LightningModule: the network is one of several attributes, all of which can have tensors."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        for name, one in networks.items():
            self.add_module(name, one)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(NUM_CLASSES))
        self.loss = nn.Module()
        self.loss.centers = nn.Parameter(torch.ones(NUM_CLASSES, 8))
        self.train_acc = nn.Module()
        self.train_acc.register_buffer("correct", torch.tensor(7))
        self.ema = nn.Module()
        self.ema.register_buffer("decay", torch.tensor(0.99))
        # Left-out tensors are never read, so they can be of a type that would be refused.
        self.register_buffer("filter", torch.ones(3, dtype=torch.complex64))


BESIDE = ["criterion.weight", "loss.centers", "train_acc.correct", "ema.decay", "filter"]


def lightning(path: Path, change=lambda state: None, **networks: nn.Module) -> Path:
    """Save a checkpoint like Lightning's for such a module, after `change` has modified its state dict."""
    state = Lit(**networks).state_dict()
    change(state)
    torch.save({"epoch": 3, "global_step": 10, "state_dict": state, "hyper_parameters": {"lr": 0.1}}, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        fitted(network(), path)
    return str(caught.value)


def test_of_two_recognised_networks_one_must_be_named_unless_only_one_fits(tmp_path):
    small, large = network(1), ResNet(depth=14, width=8).build(IMAGE_SHAPE, NUM_CLASSES)
    path = lightning(tmp_path / "w.ckpt", student=small, teacher=large)
    with pytest.raises(InputError, match="holds several networks; accepted: one of them, ") as refusal:
        recognised(path)
    for name in ("student", "teacher"):
        known = recognised(Path(f"{path}#state_dict/{name}"))
        assert known is not None
        assert f"{path}#state_dict/{name} ({label(known.network)})" in str(refusal.value)
    assert tensor_digest(fitted(network(), path).weights) == tensor_digest(small.state_dict())


@pytest.mark.parametrize("name", ["model", "net", "resnet", "student"])
def test_the_network_is_found_among_other_saved_attributes(tmp_path, name):
    theirs = network(1)
    path = lightning(tmp_path / "last.ckpt", **{name: theirs})
    for place in (path, Path(f"{path}#state_dict")):
        found = fitted(network(), place)
        assert tensor_digest(found.weights) == tensor_digest(theirs.state_dict())
        [note] = found.notes
        assert note.startswith(f"weights in {path} are read from 'state_dict/{name}' (left out: ")
        assert sum(beside in note for beside in BESIDE) == 3
        assert note.endswith(" and 2 more)")
    assert fitted(network(), Path(f"{path}#state_dict/{name}")).notes == ()
    known = recognised(path)
    assert known is not None
    assert known.network == TEACHER


def test_a_network_inside_nested_wrappers_is_found(tmp_path):
    theirs = network(1)
    wrapped_twice = nn.Module()
    wrapped_twice.add_module("normalise", nn.BatchNorm2d(1))
    wrapped_twice.add_module("net", nn.DataParallel(theirs))
    found = fitted(network(), lightning(tmp_path / "w.ckpt", model=wrapped_twice))
    assert tensor_digest(found.weights) == tensor_digest(theirs.state_dict())
    assert "'state_dict/model/net' (left out: " in found.notes[0]
    assert tensor_digest(
        fitted(network(), Path(f"{tmp_path / 'w.ckpt'}#state_dict/model/net")).weights
    ) == tensor_digest(theirs.state_dict())


def test_of_two_sibling_networks_that_fit_one_must_be_named(tmp_path):
    path = lightning(tmp_path / "w.ckpt", student=network(1), teacher=network(2))
    assert refused(path) == (
        f"weights file {path} holds several state dicts that fit; accepted: one of them, {path}#state_dict/student, "
        f"{path}#state_dict/teacher"
    )
    for name, seed in (("student", 1), ("teacher", 2)):
        found = fitted(network(), Path(f"{path}#state_dict/{name}"))
        assert tensor_digest(found.weights) == tensor_digest(network(seed).state_dict())
    message = refused(Path(f"{path}#state_dict/other"))
    assert f"is 'state_dict/other'; accepted: {path}#state_dict, " in message
    assert f"{path}#state_dict/student, {path}#state_dict/teacher" in message
    twice = network(1)
    found = fitted(network(), lightning(path, student=twice, copy=twice))
    assert tensor_digest(found.weights) == tensor_digest(twice.state_dict())
    assert not any("copy" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("model.conv.weight"), "missing: conv.weight"),
        (lambda state: state.update({"model.extra.weight": torch.ones(2)}), "unexpected: extra.weight"),
        (lambda state: state.update({"model.conv.weight": torch.ones(1)}), r"of another shape: conv.weight \(1,\) for"),
        (lambda state: state.update({"model.bn.weight": state["model.bn.weight"].int()}), "of another type: bn.weight"),
    ],
    ids=["missing", "more", "shape", "type"],
)
def test_an_incomplete_network_behind_a_prefix_is_refused_with_the_names(tmp_path, change, expected):
    path = lightning(tmp_path / "w.ckpt", change, model=network(1))
    message = refused(path)
    assert re.match(
        rf"weights in .*, read from 'state_dict/model' \(left out: .*\), do not fit the network: {expected}", message
    )


def test_other_tensors_beside_a_network_without_a_prefix_are_refused(tmp_path):
    torch.save(network(1).state_dict() | {"criterion.weight": torch.ones(3)}, tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt")
    assert message.startswith(f"weights in {tmp_path / 'w.pt'} do not fit the network: unexpected: criterion.weight")


def test_the_message_is_about_the_damaged_network_not_the_larger_one_beside_it(tmp_path):
    larger = TEACHER.__class__(depth=14, width=TEACHER.width).build(IMAGE_SHAPE, NUM_CLASSES)
    path = lightning(tmp_path / "w.ckpt", lambda s: s.pop("student.conv.weight"), teacher=larger, student=network(1))
    assert re.search(
        r"read from 'state_dict/student' \(left out: .*\), do not fit the network: missing: conv.w", refused(path)
    )


@pytest.mark.parametrize("counted", [lambda name: torch.tensor(9), lambda name: None], ids=["others", "none"])
def test_networks_that_differ_only_in_batch_counters_are_treated_as_one(tmp_path, counted):
    state, ema = network(1).state_dict(), dict(network(1).state_dict())
    for name in [name for name in ema if name.endswith("num_batches_tracked")]:
        ema[name] = counted(name)
    ema = {name: value for name, value in ema.items() if value is not None}
    for content in ({"model": state, "ema": ema}, {"ema": ema, "model": state}):
        torch.save(content, tmp_path / "w.pt")
        load_into(ours := network(2), fitted(ours, tmp_path / "w.pt").weights, "weights")
        assert torch.equal(ours.state_dict()["conv.weight"], state["conv.weight"])
    ema["conv.weight"] = ema["conv.weight"] + 1
    torch.save({"model": state, "ema": ema}, tmp_path / "w.pt")
    assert "several state dicts that fit" in refused(tmp_path / "w.pt")


def test_names_of_which_only_some_have_a_prefix_are_refused_with_those_left_out(tmp_path):
    state = network(1).state_dict()
    torch.save({name if "classifier" in name else f"module.{name}": t for name, t in state.items()}, tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt")
    assert (
        "'module' (left out: classifier.weight, classifier.bias), do not fit the network: missing: classifier.w"
        in message
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_auxiliary_head_of_a_segmentation_network_is_left_out_and_said(tmp_path, prefix):
    ours, theirs = (DeepLabResNet(width=4).build((3, 8, 8), 2) for _ in range(2))
    state = {
        **theirs.state_dict(),
        "aux_classifier.0.weight": torch.ones(4, 4, 3, 3),
        "aux_classifier.4.bias": torch.ones(2),
    }
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "w.pt")
    found = fitted(ours, tmp_path / "w.pt")
    assert found.notes == (f"weights in {tmp_path / 'w.pt'}: the auxiliary head aux_classifier is left out",)
    load_into(ours, found.weights, "weights")
    assert tensor_digest(ours.state_dict()) == tensor_digest(theirs.state_dict())


def test_a_network_with_an_auxiliary_head_gets_its_weights(tmp_path):
    ours, theirs = (nn.ModuleDict({"classifier": nn.Linear(2, 3), "aux_classifier": nn.Linear(2, 3)}) for _ in range(2))
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    assert set(fitted(ours, tmp_path / "w.pt").weights) == set(ours.state_dict())
