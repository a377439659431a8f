import sys
from typing import get_args

import programs
import pytest
import torch
from benchmark.checkouts import PEERS, check
from benchmark.convolutions import Convolutions, Form
from benchmark.names import PeerFigure
from benchmark.peers import FIGURES
from benchmark.rows import Measured, processor, read, row, table
from benchmark.sides import NETWORKS, STUDENT_STEPS, Ours, check_same
from places import DOCS, EXPERIMENTS
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.methods.inversion import Fast
from condkd_ray.models import ResNet, parse
from condkd_ray.models.network import label

ROWS = EXPERIMENTS / "benchmark_peers.parquet"


def test_the_documentation_has_the_measured_table():
    text = (
        (DOCS / "performance.md")
        .read_text(encoding="utf-8")
        .split("<!-- benchmark peers -->\n")[1]
        .split("<!-- end benchmark peers -->")[0]
    )
    assert text == table(read(ROWS)), (
        "the table in docs/performance.md is old: put in what `python experiments/benchmark_peers.py --table` prints"
    )


def test_the_documentation_names_the_peers_and_their_commits():
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert all(f"`{peer.repository}` at {peer.commit}" in text for peer in PEERS.values())


def test_every_figure_has_stored_rows():
    assert {stored["figure"] for stored in read(ROWS)} == set(FIGURES) == set(get_args(PeerFigure))
    assert {name for name, _ in FIGURES.values()} == set(PEERS)


def test_rows_name_the_processor_and_the_package_versions():
    made = row("cmi", Measured("x", [1.0], "x"), processor="Z80", packages=("torch",))
    assert ", Z80), " in made["machine"]
    assert made["versions"].endswith(f", torch {torch.__version__.split('+')[0]}")
    assert processor().endswith("bf16")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "is []; accepted: --fast CHECKOUT or --cmi CHECKOUT or --nayer CHECKOUT; or --table"),
        (["--figures", "nayer", "--fast", "."], "is ['--fast']; accepted: --nayer CHECKOUT; or --table"),
        (["--cmi", "."], "--cmi is '.'; accepted: a checkout of github.com/zju-vipa/CMI"),
    ],
)
def test_invalid_flags_are_refused_before_anything_is_measured(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = programs.script(EXPERIMENTS / "benchmark_peers.py", "--rows", tmp_path / "rows.parquet", *flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "measuring" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_incomplete_checkout_is_refused_and_the_patches_are_undone(tmp_path):
    (tmp_path / PEERS["fast"].mark).touch()
    path, cuda, loader = list(sys.path), torch.Tensor.cuda, torch.utils.data.DataLoader
    with pytest.raises(InputError, match=r"No module named 'datafree'; accepted: .* installed: `pip install kornia"):
        check("fast", tmp_path)
    assert (sys.path, torch.Tensor.cuda, torch.utils.data.DataLoader) == (path, cuda, loader)
    assert "torchvision.models.utils" not in sys.modules


def test_our_round_takes_all_its_steps_and_returns_their_times():
    network, forwards = ResNet(depth=8, width=4), []
    ours = Ours(network, network, Fast(steps=3, batch=4, width=8, latent=16))
    ours.teacher.network.register_forward_hook(lambda *_: forwards.append(1))
    spent = ours.round()
    assert len(forwards) == 3 + STUDENT_STEPS
    assert ours.state.distiller.schedule.last_epoch == STUDENT_STEPS
    assert (ours.state.round, len(ours.config.memory.live(ours.state.memory))) == (1, 4)
    assert min(spent) > 0
    assert 3 * spent.synthesis + STUDENT_STEPS * spent.student <= spent.whole
    assert ours.images() > 0
    assert len(forwards) == 6 + STUDENT_STEPS


def test_a_peer_whose_logits_differ_from_ours_is_not_compared():
    logits = torch.randn(4, 10)
    check_same("fast", "logits", logits, logits + 1e-4)
    with pytest.raises(InputError, match=r"distance of --fast's logits from ours is 1\.\d*; accepted: 0: commit 0dcec"):
        check_same("fast", "logits", logits + 1, logits)


@pytest.mark.parametrize("text", NETWORKS)
def test_the_program_has_the_networks_of_the_peers(text):
    assert label(parse(text)) == text


def test_convolutions_are_counted_by_operator_shapes_and_requested_gradients():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1, stride=2, bias=False))
    network.to(memory_format=torch.channels_last)
    images = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last)
    with Convolutions() as convolutions:
        for _ in range(3):
            network(images).sum().backward()
        with torch.no_grad():
            network[0](images)
    counts = {(call.operator.name(), call.arguments[-1]): n for call, n in convolutions.calls.items()}
    backward = "aten::convolution_backward"
    # The images need no gradient, and the second convolution has no bias.
    assert counts.pop((backward, (False, True, True))) == counts.pop((backward, (True, True, False))) == 3
    assert sorted(convolutions.calls.values()) == [3, 3, 3, 4]
    first = max(convolutions.calls, key=convolutions.calls.__getitem__)
    assert first.arguments[0] == Form((5, 3, 8, 8), images.stride(), torch.float32)
    assert 0 < convolutions.seconds(repeats=1) < 1


def test_a_form_makes_random_tensors_of_the_same_shape_strides_and_dtype():
    for tensor in (
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.ones(2, 3, 1, 1).expand(2, 3, 4, 4),
    ):
        made = Form(tuple(tensor.shape), tensor.stride(), tensor.dtype).random()
        assert (made.shape, made.stride(), made.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
