import pickle
from dataclasses import dataclass

import toy

from condkd_ray.cluster.worker.jobs import Job, SweepJobs
from condkd_ray.cluster.worker.object_store import Packer
from condkd_ray.methods.inversion import Fast
from condkd_ray.trial.plan import Lineage, Plan, PlannedTrial


def made(count: int) -> list[Job]:
    packer, prepared = Packer(), toy.make_prepared()
    plans = [Plan("toy", 0, n, toy.toy_config(seed=n)) for n in range(count)]
    lineage = Lineage("parent", 3, ("grandparent",))
    return [packer.job(PlannedTrial(f"key {plan.seed}", plan, prepared, lineage)) for plan in plans]


def test_jobs_are_the_same_after_a_journey(cluster):
    import ray

    plain = made(3)
    jobs = ray.get(ray.put(SweepJobs(plain)))
    assert list(jobs.values()) == plain
    assert list(jobs) == [job.key for job in plain]
    assert jobs["key 1"].place == plain[1].place == ("trial", "key 1")
    assert len(jobs) == 3


def test_a_trial_opens_its_own_job_alone(cluster, monkeypatch):
    import ray

    ref, opened = ray.put(SweepJobs(made(20))), []
    monkeypatch.setattr(
        PlannedTrial, "__setstate__", lambda job, state: opened.append(vars(job).update(state)), raising=False
    )
    assert ray.get(ref)["key 7"].label == "toy seed 7"
    assert len(opened) == 1


def test_references_are_kept_once(cluster):
    jobs = SweepJobs(made(20))
    assert len(jobs._refs) == len(next(iter(jobs.values())).prepared.contents)
    assert len(pickle.dumps(jobs._places)) + jobs._bytes.nbytes < 20 * 4000


def test_a_method_of_a_script_or_notebook_travels_too(cluster):
    import ray

    @dataclass(frozen=True, kw_only=True)
    class Own(Fast):
        steps: int = 3

    config = toy.toy_config(inversion=Own(batch=8))
    job = Packer().job(PlannedTrial("key", Plan("own", 0, 0, config), toy.make_prepared()))
    names = ray.remote(lambda jobs: (type(jobs["key"].config.inversion).__name__, jobs["key"].config.inversion.steps))
    assert ray.get(names.remote(SweepJobs([job]))) == ("Own", 3)
