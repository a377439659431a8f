import pickle

import toy

from condkd_ray.cluster.worker.jobs import Job, Jobs
from condkd_ray.cluster.worker.object_store import Depot
from condkd_ray.core.config import to_tree


def made(count: int) -> dict[str, Job]:
    depot, prepared = Depot(), toy.make_prepared()
    return {
        f"key {n}": Job(f"label {n}", to_tree(toy.toy_config(seed=n)), depot.pack(prepared), "trial", f"key {n}")
        for n in range(count)
    }


def test_jobs_are_the_same_after_a_journey(cluster):
    import ray

    plain = made(3)
    jobs = ray.get(ray.put(Jobs(plain)))
    assert dict(jobs) == plain
    assert list(jobs) == list(plain)
    assert len(jobs) == 3


def test_a_trial_opens_its_own_job_alone(cluster, monkeypatch):
    import ray

    ref, opened = ray.put(Jobs(made(20))), []
    monkeypatch.setattr(Job, "__setstate__", lambda job, state: opened.append(vars(job).update(state)), raising=False)
    assert ray.get(ref)["key 7"].label == "label 7"
    assert len(opened) == 1


def test_references_are_kept_once(cluster):
    jobs = Jobs(made(20))
    assert len(jobs._refs) == len(next(iter(jobs.values())).parcel.parts)
    assert len(pickle.dumps(jobs._places)) + jobs._bytes.nbytes < 20 * 4000
