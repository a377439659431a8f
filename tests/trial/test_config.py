import pytest
from toy import toy_config

from condkd_ray.core.method import InputError
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast, NoInversion
from condkd_ray.methods.targets import Soft
from condkd_ray.runs.arms import arm
from condkd_ray.trial.config import Pipeline, from_tree


def test_producers_alternate_and_use_the_student_of_staleness_rounds_before():
    pipeline = Pipeline(producers=3, staleness=2)
    assert [pipeline.producer(round) for round in range(5)] == [0, 1, 2, 0, 1]
    assert [pipeline.shown(round) for round in range(5)] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"producers": 0}, "pipeline producers is 0; accepted: an integer >= 1"),
        ({"staleness": -1}, "pipeline staleness is -1; accepted: an integer >= 0"),
        ({"producers": 3, "staleness": 1}, "pipeline producers is 3; accepted: at most 2"),
    ],
)
def test_invalid_pipelines_are_refused_at_load(fields, message):
    with pytest.raises(InputError, match=message):
        from_tree({"pipeline": fields})


def test_several_producers_cannot_warm_up_one_inversion():
    with pytest.raises(InputError, match="for an inversion that warms up is 2; accepted: 1"):
        toy_config(inversion=Fast(warm_up=1), pipeline=Pipeline(producers=2))
    toy_config(inversion=Fast(warm_up=1), pipeline=Pipeline())


def test_a_pipeline_without_an_inversion_is_refused_or_dropped_by_arms():
    with pytest.raises(InputError, match="pipeline without an inversion"):
        toy_config(inversion=NoInversion(), distiller=Distiller(condensed_share=1.0), pipeline=Pipeline())
    base = toy_config(pipeline=Pipeline())
    assert arm(base, "condensed_only", 1, 0).config.pipeline is None
    assert arm(base, "mixed", 1, 0).config.pipeline == Pipeline()


def test_soft_targets_have_a_temperature_of_their_own():
    expected = (
        "inversion oh_temperature beside targets soft is 8.0; accepted: 1: soft targets have their own temperature"
    )
    with pytest.raises(InputError, match=expected):
        toy_config(targets=Soft(), inversion=Fast(oh_temperature=8.0))
    with pytest.raises(InputError, match=f"config: {expected}"):
        from_tree({"targets": "soft", "inversion": {"oh_temperature": 8.0}})
    assert toy_config(targets=Soft(temperature=4.0)).targets.temperature == 4
    assert toy_config(inversion=Fast(oh_temperature=8.0)).inversion.oh_temperature == 8
