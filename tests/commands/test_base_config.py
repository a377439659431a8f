"""The config that the flags of an experiment describe."""

import pytest

from condkd_ray.commands.base_config import TEACHER_EPOCHS, base_config, teacher_label
from condkd_ray.commands.experiment import Flags
from condkd_ray.core.method import InputError
from condkd_ray.models import ResNet
from condkd_ray.runs.presets import PARTS, published


def test_the_default_config_is_fast_on_digits_at_the_largest_ipc():
    config = base_config(Flags())
    assert (config.data.name, config.condensation.name, config.condensation.ipc) == (
        *("digits", "distribution_matching"),
        max(Flags().ipcs),
    )
    assert (config.inversion.name, config.inversion.width, config.rounds) == ("fast", 64, 12)
    assert config.teacher.training.epochs == TEACHER_EPOCHS["digits"]
    assert config.student == ResNet(depth=8, width=8)


def test_at_least_ten_images_per_class_and_the_largest_ipc_are_condensed_together():
    for ipcs, together in (((1, 5), 10), ((1, 50), 50)):
        found = base_config(Flags(ipcs=ipcs)).condensation
        assert (found.ipc, found.condensed_together) == (max(ipcs), together)


def test_a_host_sets_its_parts_and_the_scale_sets_the_rounds():
    whole, recipe = base_config(Flags(host="fast")), published("fast")
    kept = [part for part in PARTS if part not in ("distiller", "inversion")]
    assert {part: getattr(whole, part) for part in kept} == {part: getattr(recipe, part) for part in kept}
    assert whole.distiller.condensed_share == 0.5
    short = base_config(Flags(host="fast", scale=0.1))
    assert short.rounds < whole.rounds
    assert base_config(Flags(host="fast", rounds=7)).rounds == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"host": "fast", "inversion": "cmi"},
            "--inversion with --host is 'cmi'; accepted: one of them: --host fast",
        ),
        ({"host": "fast", "rounds": 3, "scale": 0.1}, "--rounds with --scale is 3; accepted: one of them"),
        ({"scale": 0.1}, "--scale without --host is 0.1; accepted: a published system to scale"),
        ({"condensation": "imported"}, "--condensed-path is None; accepted: the condensed set to import"),
    ],
)
def test_flags_that_contradict_one_another_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        base_config(Flags(**flags))


def test_flags_set_the_weight_of_the_guidance_and_the_producers():
    config = base_config(Flags(guidance="mmd", guidance_weight=3.0, producers=2))
    assert (config.guidance.name, config.guidance.weight) == ("mmd", 3.0)
    assert (config.pipeline.producers, config.pipeline.staleness) == (2, 1)
    assert base_config(Flags(producers=1, staleness=3)).pipeline.staleness == 3


def test_a_config_file_has_precedence_over_the_flags(tmp_path):
    (tmp_path / "own.yaml").write_text("rounds: 4\ndistiller: {steps: 9}\n", encoding="utf-8")
    config = base_config(Flags(rounds=5, condensed_share=0.25, config=tmp_path / "own.yaml"))
    assert (config.rounds, config.distiller.steps, config.distiller.condensed_share) == (4, 9, 0.25)


def test_the_label_of_the_teacher_is_the_flag_or_the_default():
    assert teacher_label(Flags()) == "resnet-8-16"
    assert teacher_label(Flags(dataset="scenes")) == "deeplab_resnet-14-16"
    assert teacher_label(Flags(teacher="wrn-16-1")) == "wrn-16-1"
