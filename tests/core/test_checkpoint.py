import json
import logging
import resource
import signal
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from condkd_ray.core import checkpoint as states
from condkd_ray.core.rng import Streams


@dataclass
class Inner:
    ids: Tensor
    cursor: int = 0


@dataclass
class Whole:
    network: nn.Module
    optimizer: Any
    schedule: Any
    streams: Streams
    inner: Inner
    statistics: list[tuple[Tensor, Tensor]] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    scratch: int = states.transient(default=0)


@dataclass
class Box:
    value: Any = None


def fresh(kind: str = "adam", seed: int = 0) -> Whole:
    with Streams(seed).forked("init/student"):
        network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    network = network.to(memory_format=torch.channels_last)
    weights = network.parameters()
    optimizer = torch.optim.Adam(weights, 0.1) if kind == "adam" else torch.optim.SGD(weights, 0.1, 0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    return Whole(network, optimizer, schedule, Streams(seed), Inner(torch.empty(0, dtype=torch.int64)))


def step(state: Whole) -> list[float]:
    images = torch.randn(4, 2, 4, 4, generator=state.streams["latents"])
    loss = state.network(images.contiguous(memory_format=torch.channels_last)).square().mean()
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.schedule.step()
    state.inner = Inner(torch.cat([state.inner.ids, torch.tensor([state.inner.cursor])]), state.inner.cursor + 1)
    state.statistics = [(images.mean((0, 2, 3)), images.var((0, 2, 3)))]
    state.history.append({"round": float(state.inner.cursor), "loss": loss.item()})
    state.scratch += 1
    return [loss.item(), state.schedule.get_last_lr()[0], *state.inner.ids.tolist()]


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_loaded_state_continues_bit_for_bit(tmp_path, kind):
    live = fresh(kind)
    for _ in range(3):
        step(live)
    states.save(live, tmp_path / "state")
    loaded = states.load(fresh(kind, seed=5), tmp_path / "state")
    assert loaded.history == live.history
    assert loaded.scratch == 0
    loaded.streams.seed = 0
    assert [step(loaded) for _ in range(3)] == [step(live) for _ in range(3)]


def test_a_loaded_state_shares_no_memory_with_the_saved_one(tmp_path):
    live = fresh()
    step(live)
    states.save(live, tmp_path / "state")
    first, second = (states.load(fresh(), tmp_path / "state") for _ in range(2))
    before = states_of(second)
    step(live)
    step(first)
    assert all(torch.equal(a, b) for a, b in zip(before, states_of(second), strict=True))
    pointers = [t.data_ptr() for s in (live, first, second) for t in states_of(s, clone=False) if t.numel()]
    assert len(set(pointers)) == len(pointers)


def states_of(state: Whole, clone: bool = True) -> list[Tensor]:
    moments = [t for s in state.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    found = [*state.network.state_dict().values(), *moments, state.inner.ids, *(state.statistics or [()])[0]]
    return [t.detach().clone() for t in found] if clone else found


def test_memory_formats_are_kept(tmp_path):
    # In another memory format sums have another order, and thus other rounding.
    plain, last = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    states.save(Box([plain, last]), tmp_path / "state")
    loaded = states.load(Box(), tmp_path / "state").value
    assert [t.stride() for t in loaded] == [plain.stride(), last.stride()]
    live = fresh()
    step(live)
    states.save(live, tmp_path / "state")
    moment = next(iter(states.load(fresh(), tmp_path / "state").optimizer.state.values()))["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)


def test_a_view_is_saved_without_its_base(tmp_path):
    rows = torch.arange(1000)
    states.save(Box(rows[3:5]), tmp_path / "state")
    assert states.load(Box(), tmp_path / "state").value.tolist() == [3, 4]
    assert (tmp_path / "state").stat().st_size < 1000


def test_leaves_that_share_memory_are_saved_separately(tmp_path):
    rows = torch.arange(10)
    states.save(Box([rows, rows, rows[:6], rows[4:]]), tmp_path / "state")
    loaded = states.load(Box(), tmp_path / "state").value
    assert [t.tolist() for t in loaded] == [list(range(10)), list(range(10)), list(range(6)), list(range(4, 10))]
    loaded[0].zero_()
    assert loaded[1].tolist() == list(range(10))


def test_requires_grad_is_that_of_the_fresh_state(tmp_path):
    states.save(Box(torch.ones(2)), tmp_path / "state")
    assert states.load(Box(torch.zeros(2, requires_grad=True)), tmp_path / "state").value.requires_grad
    assert not states.load(Box(torch.zeros(2)), tmp_path / "state").value.requires_grad


dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=4),
    dtypes,
    st.integers(0, 99),
)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@given(tree=trees)
def test_any_tree_is_equal_after_saving_and_loading(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "state"
    states.save(Box(tree), path)
    assert same(states.load(Box(), path).value, tree)


@pytest.mark.parametrize(
    "value",
    [pytest.param(object(), id="object"), {1, 2}, Box([nn.Linear(1, 1)]), Box({"a": Inner(torch.ones(1))})],
    ids=str,
)
def test_a_value_that_cannot_be_loaded_raises_and_the_old_file_stays(tmp_path, value):
    states.save(Box(1), tmp_path / "state")
    with pytest.raises(TypeError, match="cannot save"):
        states.save(Box(value), tmp_path / "state")
    assert states.load(Box(), tmp_path / "state").value == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_leaves_only_the_old_file(tmp_path):
    states.save(Box(1), tmp_path / "state")
    before, old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(Exception, match=r"(?i)too large"):
            states.save(Box(torch.zeros(10_000)), tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert states.load(Box(), tmp_path / "state").value == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def foreign(path):
    save_file({"0": torch.ones(1)}, path, metadata={"format": "pt", "tree": json.dumps(None)})


@pytest.mark.parametrize(
    "write",
    [
        foreign,
        lambda path: torch.save({"value": 1}, path),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("nothing"),
    ],
    ids=["safetensors", "pickle", "empty", "text"],
)
def test_load_whole_deletes_a_damaged_file_and_logs_it(tmp_path, write, caplog):
    caplog.set_level(logging.INFO, "condkd_ray")
    path, box = tmp_path / "state", Box()
    assert states.load_whole(box, path) is None
    states.save(Box(torch.ones(2)), path)
    assert torch.equal(states.load_whole(box, path).value, torch.ones(2))
    assert caplog.text == ""
    write(path)
    assert states.load_whole(box, path) is None
    assert not path.exists()
    assert f"{path} " in caplog.text
    assert "it is deleted and will be made again" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_damaged_and_does_not_change_the_state(tmp_path, share):
    path, box = tmp_path / "state", Box(torch.zeros(2))
    states.save(Box(torch.ones(1000)), path)
    whole = path.read_bytes()
    for content in (whole[: int(share * len(whole))], bytes(len(whole)), whole[: int(share * len(whole))] + b"\0" * 99):
        path.write_bytes(content)
        with pytest.raises(states.DamagedError, match=f"{path} is damaged or of an unknown format"):
            states.load(box, path)
        assert torch.equal(box.value, torch.zeros(2))


@pytest.mark.parametrize(
    "write",
    [
        foreign,
        lambda path: torch.save({"value": 1}, path),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("nothing"),
    ],
    ids=["safetensors", "pickle", "empty", "text"],
)
def test_a_file_of_another_format_raises_an_error(tmp_path, write):
    write(tmp_path / "state")
    with pytest.raises(ValueError, match="format"):
        states.load(Box(), tmp_path / "state")


class ReadableMeta(TorchDispatchMode):
    """Context in which the meta device represents an accelerator: a copy of its tensors to the host is ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        copies = func is torch.ops.aten._to_copy.default and args[0].is_meta
        if copies and (kwargs or {}).get("device") == torch.device("cpu"):
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_keys_of_host_tensors_are_stored_if_others_are_on_an_accelerator(tmp_path):
    host, far = torch.arange(3), torch.ones(2, device="meta")
    with ReadableMeta():
        mixed, alone = states.pack(Box([host, (far, host)])), states.pack(Box([far]))
    assert [mixed["tensors"][key].tolist() for key in mixed["host"]] == [[0, 1, 2]] * 2
    assert alone["host"] == []
    states.save(Box([host]), tmp_path / "state")
    assert header(tmp_path / "state")["host"] == "[]"


def header(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_host_tensors_are_loaded_to_the_host(tmp_path):
    with ReadableMeta():
        states.save(Box([torch.arange(3), torch.ones(2, device="meta")]), tmp_path / "state")
    host, far = states.load(Box(), tmp_path / "state", "meta").value
    assert host.tolist() == [0, 1, 2]
    assert far.device.type == "meta"


def test_a_tensor_is_loaded_to_the_device_of_the_fresh_state(tmp_path):
    states.save(Inner(torch.arange(3)), tmp_path / "state")
    fresh = Inner(torch.empty(0, dtype=torch.int64, device="meta"))
    assert states.load(fresh, tmp_path / "state", "cpu").ids.device.type == "meta"


def test_a_file_without_the_list_of_host_tensors_is_loaded(tmp_path):
    states.save(Box([torch.arange(3), 1]), tmp_path / "state")
    old = {key: value for key, value in header(tmp_path / "state").items() if key != "host"}
    save_file(load_file(tmp_path / "state"), tmp_path / "old", metadata=old)
    assert states.load(Box(), tmp_path / "old").value[0].tolist() == [0, 1, 2]
    assert states.load(Box(), tmp_path / "old", "meta").value[0].device.type == "meta"
