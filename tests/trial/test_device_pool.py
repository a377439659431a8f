from dataclasses import replace
from types import SimpleNamespace

import pytest
import toy

from condkd_ray.core.method import InputError
from condkd_ray.methods.inversion import Dafl, NoInversion
from condkd_ray.methods.memory import Bank, Growing, Latest, store
from condkd_ray.methods.memory.device_rows import DeviceRows
from condkd_ray.trial.device_pool import check_on_gpu, check_round_fits, round_bytes
from condkd_ray.trial.run import local_store, run_trial

SHAPE, CLASSES = toy.IMAGE_SHAPE, toy.NUM_CLASSES
DATASET = SimpleNamespace(image_shape=SHAPE, num_classes=CLASSES)


def test_round_bytes_counts_images_labels_and_kept_logits():
    config = toy.toy_config()
    assert round_bytes(config, SHAPE, CLASSES, logits=False) == 16 * (64 + 8)
    assert round_bytes(config, SHAPE, CLASSES, logits=True) == 16 * (64 + 8 + 8)


def test_images_in_model_space_need_twice_the_bytes():
    config = toy.toy_config(inversion=Dafl())
    assert config.inversion.pixel_space == "model"
    assert round_bytes(config, SHAPE, CLASSES, logits=False) == config.inversion.images_per_round * (128 + 8)


def test_a_limit_below_a_round_is_refused_with_the_minimum():
    config, least = toy.toy_config(), 16 * (64 + 8)
    for enough in (None, least):
        check_round_fits(enough, config, DATASET)
    message = f"--device-pool-limit is '{least - 1} bytes'; accepted: at least the {least} bytes of a round's 16 images"
    with pytest.raises(InputError, match=message):
        check_round_fits(least - 1, config, DATASET)
    # Without synthetic images, no limit is too small.
    idle = replace(config, inversion=NoInversion(), distiller=replace(config.distiller, condensed_share=1.0))
    check_round_fits(1, idle, DATASET)


def test_a_limit_for_trials_on_a_cpu_is_refused():
    check_on_gpu(None, False, "none")
    check_on_gpu("1GB", True, "none")
    with pytest.raises(InputError, match="--device-pool-limit for a trial on a CPU is '1GB'; accepted: none"):
        check_on_gpu("1GB", False, "none")


@pytest.mark.parametrize("limit", [2**30, 20 * (64 + 8)], ids=["all on the device", "most on the host"])
@pytest.mark.parametrize("memory", [Growing(capacity=40), Latest(), Bank(entry_size=8, period=1)], ids=lambda m: m.name)
def test_a_trial_gives_the_same_numbers_with_its_samples_as_rows_on_a_device(memory, limit, tmp_path, monkeypatch):
    config, prepared = toy.toy_config(memory=memory, rounds=5), toy.make_prepared()

    def numbers(folder):
        files = {"checkpoint": folder / "state", "checkpoint_seconds": 0}
        outcome = run_trial(config, prepared, local_store(config, prepared, folder), **files)
        rounds = [{k: v for k, v in round.items() if not k.startswith("time/")} for round in outcome.history]
        return outcome.predictions, rounds

    expected = numbers(tmp_path / "host")
    monkeypatch.setattr(store, "rows_on", lambda device, _: DeviceRows(device, limit))
    assert numbers(tmp_path / "device") == expected
