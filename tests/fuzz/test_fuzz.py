"""Random files: each is accepted, or refused with one message that names what is accepted.

The tests call the functions of the commands, in one process. `pytest -m slow tests/fuzz --fuzz 2000` tests two thousand
files of each kind.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from toy import IMAGE_SHAPE, MEAN, NUM_CLASSES, STD, blobs, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.data.datasets import DataConfig, load
from condkd_ray.methods.condensation import Imported
from condkd_ray.models.resnet import ResNet
from condkd_ray.models.weights import fitted, load_into
from condkd_ray.runs import search
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study import space
from condkd_ray.study.journal import Journal
from condkd_ray.study.objective import Objective
from condkd_ray.study.points import points_of
from condkd_ray.study.study import Study
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import read
from fuzz.files import Checkpoint, checkpoints, folders, parquets, put
from fuzz.journals import Given, complete, journals, study_in, whole
from fuzz.refusals import refusal
from fuzz.sets import GivenSet, sets
from fuzz.trees import configs, points, spaces

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Generating overly large repr")]
PHRASES = ("accepted", "is not YAML", "cannot be read", "cannot read", "do not fit", "holds")
"""Every refusal contains one of these."""


@pytest.fixture
def many(request) -> Callable[[st.SearchStrategy, Callable[[object, Path], None]], Counter[str]]:
    """A function that tests inputs of a kind, each in its own folder; it returns how many were accepted and refused."""

    def tried(strategy: st.SearchStrategy, take: Callable[[object, Path], None]) -> Counter[str]:
        seen: Counter[str] = Counter()

        # Failing inputs are not shrunk: that would take minutes, and they are small.
        @settings(
            max_examples=request.config.getoption("--fuzz"),
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(given: object) -> None:
            folder = Path(tempfile.mkdtemp(prefix="fuzz"))
            try:
                message = refusal(lambda: take(given, folder))
            finally:
                shutil.rmtree(folder)
            assert message is None or any(word in message for word in PHRASES), message
            seen["taken" if message is None else "refused"] += 1

        one()
        # If all inputs were accepted, or all refused, the test would show nothing.
        assert min(seen["taken"], seen["refused"]) > 0, seen
        return seen

    return tried


def test_any_config_file_is_accepted_or_refused(many, tmp_path):
    workshop = Workshop(tmp_path / "cache")

    def take(content: bytes, folder: Path) -> None:
        (folder / "trial.yaml").write_bytes(content)
        workshop.check(read(folder / "trial.yaml"))

    many(configs(), take)


def test_any_space_file_is_accepted_or_refused(many):
    def take(content: bytes, folder: Path) -> None:
        (folder / "space.yaml").write_bytes(content)
        tree = space.read(folder / "space.yaml")
        search.check(tree, SearchSpec(out=folder / "out"))
        space.corners(tree)

    many(spaces(), take)


@pytest.mark.parametrize("kind", ["image_folder", "class_folders"])
def test_any_image_folder_is_accepted_or_refused(many, kind: str):
    def take(files: dict[str, bytes], folder: Path) -> None:
        load(DataConfig(name=kind, root=put(files, folder), size=8))

    many(folders(), take)


def test_any_parquet_file_is_accepted_or_refused(many):
    def take(files: dict[str, bytes], folder: Path) -> None:
        load(DataConfig(name="parquet", root=put(files, folder), size=8))

    many(parquets(), take)


def test_sound_checkpoints_are_read_and_others_accepted_or_refused(many):
    def made() -> torch.nn.Module:
        with Streams(0).forked("fuzz"):
            return ResNet(depth=8, width=2).build((1, 8, 8), 3)

    weights = made().state_dict()

    def take(file: Checkpoint, folder: Path) -> None:
        path, network = folder / file.name, made()
        path.write_bytes(file.content)
        for value in network.parameters():
            torch.nn.init.zeros_(value)
        load_into(network, fitted(network, path).weights, f"weights in {path}")
        if file.sound:
            assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())

    many(checkpoints(weights), lambda file, folder: sound_is_taken(file.sound, lambda: take(file, folder)))


def test_sound_condensed_sets_are_read_and_others_accepted_or_refused(many):
    teacher, real = make_teacher(), blobs(64, seed=2).samples(MEAN, STD)

    def take(given: GivenSet, folder: Path) -> None:
        method = Imported(path=put(given.files, folder) / given.path, **{"ipc": 1} | given.fields)
        units = {"num_classes": NUM_CLASSES, "mean": MEAN, "std": STD}
        found = method.condense(real, **units, rng=Streams(0), teacher=teacher)
        assert found.images.shape == (method.ipc * NUM_CLASSES, *IMAGE_SHAPE)
        assert found.images.isfinite().all()
        assert found.labels.bincount().tolist() == [method.ipc] * NUM_CLASSES

    many(sets(), lambda given, folder: sound_is_taken(given.sound, lambda: take(given, folder)))


def sound_is_taken(sound: bool, take: Callable[[], None]) -> None:
    """Call `take`; fail the test if a sound input is refused."""
    try:
        take()
    except InputError as error:
        if sound:
            raise AssertionError(str(error)) from None
        raise


def test_sound_points_are_tried_and_others_accepted_or_refused(many):
    tree = space.parse("""
    data: {name: digits}
    inversion: {bn_weight: !log_uniform [0.1, 100], batch: !int [16, 64]}
    guidance: !choice [none, {name: discriminator, weight: !uniform [1, 10]}, {name: mmd, weight: !uniform [0, 2]}]
    condensation: {name: random_real, ipc: 1}
    distiller: {lr: !choice [0.1, 0.2]}
    seed: !int [0, 3]
    """)
    values = {
        "inversion/bn_weight": [0.1, 1, "1e-1", 100.0],
        "inversion/batch": [16, 64.0, "32"],
        "guidance/name": ["none", "discriminator", "mmd"],
        "distiller/lr": [0.1, 0.2],
        "seed": [0, 3],
    }

    def take(content: bytes, folder: Path) -> None:
        (folder / "points").write_bytes(content)
        found = points_of(tree, folder / "points")
        study = Study(InMemoryStorage(), "s", tree, Objective(("proxy/agreement",)), sampler="random")
        study.suggest_first(found)
        for number, point in enumerate({str(point): point for point in found}.values()):
            proposal = study.propose()
            assert proposal is not None
            # A later point may equal an earlier trial once its open values are drawn, and is then skipped.
            assert number or point.items() <= proposal.params.items()

    many(points(values), lambda given, folder: sound_is_taken(given[0], lambda: take(given[1], folder)))


def test_a_search_continues_from_cut_journals_and_accepts_or_refuses_others(many):
    known = [str(trial) for trial in whole()[1].values()]

    def take(given: Given, folder: Path) -> None:
        (folder / "study.journal").write_bytes(given.content)
        study = study_in(folder)
        # Complete trials were complete before, unless a byte of the journal was changed.
        assert given.changed or {str(trial) for trial in complete(study).values()} <= set(known)
        for running in study.left_running():
            study.fail(running.number, "killed")
        proposal = study.propose()
        assert proposal is not None
        study.report(proposal.number, 1, 0.5)
        study.complete(proposal.number, [0.75])
        again = study_in(folder)
        assert complete(again) == complete(study)
        assert again.trial(proposal.number).values == [0.75]
        assert len(list(Journal(folder / "study.journal").read_logs(0))) == len(
            [json.loads(line) for line in (folder / "study.journal").read_bytes().splitlines()]
        )

    many(journals(), lambda given, folder: sound_is_taken(given.sound, lambda: take(given, folder)))
