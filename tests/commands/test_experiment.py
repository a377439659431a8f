"""Flags of experiments: the config that they become, and flags that are refused."""

from pathlib import Path

import pytest

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.config import identity
from condkd_ray.core.method import InputError
from condkd_ray.methods.condensation import Imported
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.memory import Latest
from condkd_ray.trial.config import Pipeline


def test_flags_become_a_config(tmp_path: Path):
    (tmp_path / "over.yaml").write_text("inversion: {steps: 3}\nprecision: bfloat16\n")
    config = Flags(student="resnet-8-4", condensed_share=0.25, config=tmp_path / "over.yaml").base()
    assert (config.inversion, config.precision) == (Fast(steps=3, width=64), "bfloat16")
    assert (config.student.width, config.distiller.condensed_share) == (4, 0.25)
    assert config.condensation.ipc == 10


def test_producers_become_a_pipeline():
    assert Flags().base().pipeline is None
    assert Flags(producers=1).base().pipeline == Pipeline(producers=1, staleness=1)
    assert Flags(producers=3, staleness=2).base().pipeline == Pipeline(producers=3, staleness=2)


def test_flags_of_a_condensed_set_become_its_fields():
    path = Path("set.pt")
    assert Flags(condensed_path=path).base().condensation == Imported(path=path, ipc=10)
    fields = {"mean": (0.5,), "std": (0.25,), "order": (1, 0)}
    flags = {f"condensed_{name}": value for name, value in fields.items()}
    config = Flags(condensed_path=path, condensed_space="normalised", force_condensed=True, **flags).base()
    assert config.condensation == Imported(path=path, ipc=10, space="normalised", force=True, **fields)


def test_fields_that_are_not_set_are_no_part_of_the_identity():
    """The hashes of earlier runs must not change."""
    plain = Imported(path=Path("a.pt"))
    assert identity(plain) == {"name": "imported"}
    declared = Imported(path=Path("a.pt"), mean=(0.5,), std=(0.25,), order=(1, 0))
    assert identity(declared) == {"name": "imported", "mean": [0.5], "std": [0.25], "order": [1, 0]}


@pytest.mark.parametrize("inversion", ["dafl", "zskt", "dfad", "dfq", "pre_dfkd"])
def test_an_adversarial_host_gets_the_memory_of_the_latest_images(inversion):
    config = Flags(inversion=inversion).base()
    assert config.inversion.name == inversion
    assert isinstance(config.memory, Latest)


@pytest.mark.parametrize("inversion", ["fast", "cmi", "dafl", "zskt", "dfad", "dfq", "pre_dfkd"])
def test_digits_get_a_narrower_generator(inversion):
    assert Flags(inversion=inversion).base().inversion.width == 64
    assert Flags(inversion=inversion, dataset="cifar10").base().inversion.width == 128


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ipcs": (0, 1)}, r"--ipcs is \(0, 1\); accepted: one or more integers >= 1"),
        ({"ipcs": ()}, "--ipcs is"),
        ({"seeds": (-1,)}, "--seeds is"),
        ({"condensation": "imported"}, "--condensed-path is None; accepted: the condensed set to import"),
        ({"teacher": "./weights.pt"}, "network is './weights.pt'; accepted: .*resnet"),
        ({"staleness": 2}, "pipeline producers is 0; accepted: an integer >= 1"),
        ({"producers": 3}, "pipeline producers is 3; accepted: at most 2, the staleness"),
        ({"guidance_weight": -1.0}, "guidance weight is -1.0; accepted: >= 0"),
    ],
)
def test_bad_flags_are_refused_with_a_message(flags: dict, message: str):
    with pytest.raises(InputError, match=message):
        Flags(**flags).base()
