"""The published systems: each by its own name, of parts that say so, and able to start."""

from typing import get_args

import pytest
from toy import make_prepared, toy_config

from condkd_ray.systems import SYSTEMS, Name
from condkd_ray.trial import start


def test_the_names_are_those_of_the_systems():
    assert get_args(Name) == tuple(SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_only_what_a_paper_says_is_changed(name):
    system, base = SYSTEMS[name], toy_config(seed=3, rounds=5)
    config = system.into(base, most_steps=3, width=None)
    assert getattr(config.inversion, "steps", 0) == min(getattr(system.inversion, "steps", 0), 3)
    assert getattr(config.inversion, "width", None) == getattr(system.inversion, "width", None)
    assert (config.memory, config.targets, config.weighing) == (system.memory, system.targets, system.weighing)
    assert config.distiller.loss == system.loss
    kept = ("seed", "rounds", "student", "teacher", "data", "condensation", "guidance")
    assert all(getattr(config, field) == getattr(base, field) for field in kept)
    assert (config.distiller.steps, config.distiller.batch) == (base.distiller.steps, base.distiller.batch)
    assert start(config, make_prepared()).round == 0
    assert config.inversion.paper != "-"


def test_systems_differ():
    base = toy_config()
    assert len({system.into(base) for system in SYSTEMS.values()}) == len(SYSTEMS)
