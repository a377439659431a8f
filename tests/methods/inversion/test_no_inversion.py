import torch
from toy import IMAGE_SHAPE, make_prepared, toy_config

from condkd_ray.core.rng import Streams
from condkd_ray.methods.interfaces import Targets, Unguided, equal_weights
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.trial.run import local_store, run_trial


def test_it_makes_no_images_and_opens_no_stream():
    prepared, rng = make_prepared(), Streams(0)
    samples, terms = NoInversion().synthesize(
        None,
        Targets(torch.empty(0, dtype=torch.int64)),
        teacher=prepared.teacher,
        student=prepared.teacher.network,
        guide=Unguided(),
        weigh=equal_weights,
        rng=rng,
    )
    assert (tuple(samples.images.shape), len(samples.labels), terms) == ((0, *IMAGE_SHAPE), 0, {})
    assert rng.state_dict() == {"device": {}, "host": {}}


def test_a_student_learns_from_condensed_images_alone():
    prepared = make_prepared()
    base = toy_config()
    distiller = type(base.distiller)(steps=10, batch=16, condensed_share=1.0)
    config = toy_config(inversion=NoInversion(), distiller=distiller, rounds=6)
    store = local_store(config, prepared, None)
    outcome = run_trial(config, prepared, store)
    assert store.num_ids == 0
    assert outcome.history[-1]["kd/loss"] < 0.5 * outcome.history[0]["kd/loss"]
