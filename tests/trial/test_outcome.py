"""The outcome of a trial. The test set is evaluated after everything else."""

from dataclasses import replace

import pytest
import torch
from toy import NUM_CLASSES, blobs, make_prepared, toy_config

from condkd_ray.core.checkpoint import DamagedError
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.methods.memory import Latest
from condkd_ray.trial import evaluation
from condkd_ray.trial.config import Prepared
from condkd_ray.trial.outcome import left_outcome, load_outcome, save_outcome, summary
from condkd_ray.trial.run import local_store, run_trial
from condkd_ray.trial.subset import ROUND_SUBSET

CONFIG = toy_config(memory=Latest(), guidance=Discriminator(), rounds=10)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return make_prepared()


def test_an_outcome_contains_what_a_record_needs(prepared):
    rows: list[Metrics] = []
    config = toy_config()
    outcome = run_trial(config, prepared, local_store(config, prepared, None), on_round=rows.append)
    assert (outcome.status, outcome.reason) == ("finished", "")
    assert rows == outcome.history
    right = torch.tensor(outcome.predictions) == prepared.test.labels
    assert outcome.metrics["student/test_accuracy"] == right.double().mean().item()
    assert len(outcome.predictions) == len(prepared.test)
    assert outcome.images is not None
    assert outcome.images.dtype == torch.uint8
    assert len(outcome.images) == NUM_CLASSES * outcome.images_per_class > 0
    assert {name: sum(counts) for name, counts in outcome.held.items()} == {"class": 48, "confidence": 48}
    assert outcome.peak_bytes > 10_000_000
    assert outcome.threads == torch.get_num_threads()


def test_a_run_without_synthetic_images_shows_the_condensed_ones(prepared):
    alone = toy_config(inversion=NoInversion(), distiller=Distiller(steps=2, batch=16, condensed_share=1.0))
    outcome = run_trial(alone, prepared, local_store(alone, prepared, None))
    assert outcome.images_per_class == 2
    assert outcome.metrics["memory/bytes"] == 0
    assert outcome.held == {}


def test_the_summary_of_a_history_is_correct():
    history: list[Metrics] = [
        {"round": 1, "student/test_accuracy": 0.2, "proxy/kl": 3.0, "time/wall_seconds": 1.0, "kd/loss": 4.0},
        {"round": 2, "time/wall_seconds": 2.0},
        {"round": 3, "student/test_accuracy": 0.7, "proxy/kl": 1.0, "diagnosis/gap": 2.0, "memory/bytes": 7},
        {"round": 4, "student/test_accuracy": 0.6, "time/wall_seconds": 3.0}
        | {"guidance/accuracy": 0.6, "guidance/perfect_accuracy": 0.5, "guidance/class": 0.9},
    ]
    assert summary(history, 600) == {
        "proxy/kl": 1.0,
        "diagnosis/gap": 2.0,
        "memory/bytes": 7,
        "guidance/accuracy": 0.6,
        "guidance/perfect_accuracy": 0.5,
        "time/wall_seconds": 6.0,
        "student/test_accuracy_mean": pytest.approx(0.5),
        "student/test_accuracy_variance": pytest.approx(0.14 / 3),
        "student/test_accuracy_best": 0.7,
        "student/forgetting": pytest.approx(0.1),
        "student/test_rounds": 3,
        "student/test_images": 600.0,
    }


def test_forgetting_is_0_if_the_last_round_is_the_best():
    history: list[Metrics] = [{"round": k, "student/test_accuracy": 0.1 * k} for k in (1, 2, 3)]
    assert summary(history, 600)["student/forgetting"] == 0


@pytest.mark.parametrize("test_rounds", ["subset", "full"])
def test_the_last_round_equals_the_final_test_only_if_all_images_are_measured(prepared, test_rounds):
    test = blobs(ROUND_SUBSET + 500, seed=7)
    # Sorted by label, so the first images contain only some classes.
    many = replace(prepared, test=test[test.labels.argsort(stable=True)])
    config = toy_config(test_rounds=test_rounds)
    outcome = run_trial(config, many, local_store(config, many, None))
    measured = [row["student/test_accuracy"] for row in outcome.history]
    assert (measured[-1] == outcome.metrics["student/test_accuracy"]) is (test_rounds == "full")
    images = {"subset": ROUND_SUBSET, "full": ROUND_SUBSET + 500}[test_rounds]
    assert outcome.metrics["student/test_images"] == images
    assert isinstance(outcome.metrics["student/test_images"], float)
    # Each accuracy is a multiple of 1 / images.
    assert all(accuracy * images == pytest.approx(round(accuracy * images), abs=1e-9) for accuracy in measured)


def test_measuring_more_test_images_does_not_change_the_training(prepared):
    many = replace(prepared, test=blobs(ROUND_SUBSET + 500, seed=7))
    found = []
    for test_rounds in ("subset", "full"):
        config = toy_config(test_rounds=test_rounds)
        outcome = run_trial(config, many, local_store(config, many, None))
        kept = [{k: v for k, v in m.items() if not k.startswith(("time/", "student/"))} for m in outcome.history]
        found.append((kept, outcome.predictions))
    assert found[0] == found[1]


def test_no_test_image_is_used_before_all_other_results_are_passed_on(prepared, monkeypatch):
    config, are_test_images, outcomes = replace(CONFIG, rounds=2), [], []
    whole, real = prepared.test, evaluation.RealImages.samples
    rows = {row.numpy().tobytes() for row in whole.pixels}

    def samples(self, mean, std):
        are_test_images.extend(row.numpy().tobytes() in rows for row in self.pixels)
        return real(self, mean, std)

    def before_test(outcome):
        outcomes.append((any(are_test_images), outcome))

    monkeypatch.setattr(evaluation.RealImages, "samples", samples)
    outcome = run_trial(config, prepared, local_store(config, prepared, None), before_test=before_test)
    ((seen, untested),) = outcomes
    assert not seen
    assert any(are_test_images)
    assert untested.predictions == []
    assert not any("test" in name for row in [untested.metrics, *untested.history] for name in row)
    # Except for times, the results equal those of a trial that uses the test set in every round.
    tested_each_round = run_trial(config, prepared, local_store(config, prepared, None))
    assert outcome.predictions == tested_each_round.predictions
    assert outcome.metrics["proxy/agreement"] == tested_each_round.metrics["proxy/agreement"]
    assert outcome.metrics["student/test_accuracy"] == tested_each_round.metrics["student/test_accuracy"]


def test_an_outcome_is_equal_after_saving_and_loading(tmp_path, prepared):
    config = replace(CONFIG, rounds=1)
    outcome = run_trial(config, prepared, local_store(config, prepared, None))
    save_outcome(outcome, tmp_path / "outcome.safetensors")
    loaded = left_outcome(tmp_path / "outcome.safetensors")
    assert torch.equal(loaded.images, outcome.images)
    assert replace(loaded, images=None) == replace(outcome, images=None)


@pytest.mark.parametrize("kept", [0, 0.5, 0.98])
def test_a_damaged_outcome_is_none(tmp_path, kept):
    path = tmp_path / "outcome.safetensors"
    assert left_outcome(path) is None
    save_outcome(Outcome(status="failed", reason="why"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DamagedError, match=str(path)):
        load_outcome(path)
    assert left_outcome(path) is None
    assert not path.exists()
