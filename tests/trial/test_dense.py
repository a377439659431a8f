"""Trials of segmentation: rounds, what is stored, arms, resuming, refusals and outcomes."""

import re
from dataclasses import replace

import pytest
import torch
from toy_dense import CLASS_NAMES, STUDENT, dense_config, make_dense_prepared, masks, same_images

from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED
from condkd_ray.core.task import IOU
from condkd_ray.data.datasets import RealImages
from condkd_ray.data.palette import coloured
from condkd_ray.methods.condensation import Herding, RandomReal
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.guidance import Discriminator, Gaussian, Mmd, Moments, NoGuidance
from condkd_ray.methods.guidance.from_guides import FromGuides
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Cmi, Dafl, DeepInversion, Dfad, Fast, NoInversion
from condkd_ray.methods.inversion.inversion import Round, StepBatch
from condkd_ray.methods.losses.kd import Hinton, LogitL1
from condkd_ray.methods.memory import Bank, Growing, Latest, Prioritized, Reservoir
from condkd_ray.methods.scores import class_iou, confusion, mean_iou
from condkd_ray.methods.targets import Layouts, Targets
from condkd_ray.methods.weighing import Modulating, equal_weights
from condkd_ray.models.observation import Observation
from condkd_ray.testing.world import NUM_CLASSES
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import from_tree
from condkd_ray.trial.evaluation import compare_pixels
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.outcome import Product, product_path
from condkd_ray.trial.run import local_store, run_trial
from condkd_ray.trial.subset import DENSE_SUBSET, in_round

SIZES = {"steps": 2, "batch": 8, "width": 8}
FRESH = SIZES | {"latent": 16, "images_per_round": 12}
INVERSIONS = {
    "fast": Fast(latent=16, **SIZES),
    "dfad": Dfad(**FRESH),
    "dafl": Dafl(**FRESH),
    "conditional": Dfad(**FRESH, conditional=True, oh_weight=1.0),
    "deep_inversion": DeepInversion(steps=2, batch=8),
    "cmi": Cmi(**SIZES, latent=16, head=8, negatives=8, bank=24),
}
MEMORIES = [
    Growing(capacity=20),
    Reservoir(capacity=12),
    Latest(),
    Bank(entry_size=4, period=1),
    Prioritized(scale=0.2),
]
GUIDANCES = [Discriminator(), Gaussian(), Mmd(), Moments()]


@pytest.fixture(scope="module")
def prepared():
    return make_dense_prepared()


def numbers(history):
    return [{k: v for k, v in metrics.items() if not k.startswith("time/")} for metrics in history]


def rounds(config, prepared, count, folder=None):
    state, store = start(config, prepared), local_store(config, prepared, folder)
    for _ in range(count):
        run_round(config, prepared, state, store)
        store.commit()
    return state, store


def finished(config, prepared, **given):
    outcome = run_trial(config, prepared, local_store(config, prepared, None), **given)
    assert outcome.status == "finished", outcome.reason
    return outcome


def test_a_round_reports_the_score_of_the_task(prepared):
    state, store = rounds(dense_config(guidance=Discriminator()), prepared, 2)
    for metrics in state.history:
        assert 0 <= metrics["student/test_miou"] <= 1
        assert 0 <= metrics["student/val_miou"] <= 1
        assert 0 <= metrics["proxy/agreement"] <= 1
        assert metrics["proxy/kl"] >= 0
        assert not [name for name in metrics if "accuracy" in name and name.startswith("student/")]
    # uint8 images and int16 masks
    assert state.history[-1]["memory/bytes"] == store.num_bytes == 16 * 12 * 16 * (1 + 2)


def test_stored_labels_are_the_teachers_predictions_of_the_stored_images(prepared):
    _, store = rounds(dense_config(), prepared, 2)
    kept = store.gather(torch.arange(store.num_ids))
    assert torch.equal(kept.labels, prepared.teacher.logits(kept.images).argmax(1))
    assert store.class_counts.tolist() == masks(kept)
    assert not kept.has_logits


@pytest.mark.parametrize("name", INVERSIONS)
def test_logits_are_stored_on_request_and_change_nothing_but_the_bytes(name, prepared):
    """Without augmentation the student reads stored logits, or asks the teacher again: half precision is the rest."""
    distiller = Distiller(steps=2, batch=8, augment=False, loss=LogitL1(), lr=0.01)
    memory = Latest() if INVERSIONS[name].fresh_each_round else Growing()
    base = dense_config(inversion=INVERSIONS[name], distiller=distiller, memory=memory)
    (asked, small), (stored, large) = (
        rounds(replace(base, store_logits=given), prepared, 2) for given in (False, True)
    )
    image = base.inversion.pixel_space == "unit" or 2
    assert small.num_bytes * (image + 2 + 2 * 4) == large.num_bytes * (image + 2)
    kept = large.gather(torch.arange(large.num_ids)[-4:])
    assert kept.logits.shape == (4, 4, 12, 16)
    torch.testing.assert_close(kept.logits, prepared.teacher.logits(kept.images), atol=0.05, rtol=1e-3)
    losses = [state.history[0]["kd/loss"] for state in (asked, stored)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_labelled_images_have_logits_where_logits_are_stored(tmp_path):
    """Labelled images then have logits too, so that a mixed batch has them."""
    distiller = Distiller(steps=2, batch=8, augment=False, condensed_share=0.5)
    config = dense_config(distiller=distiller, store_logits=True)
    shop = Workshop(tmp_path)
    quick = replace(config, teacher=replace(config.teacher, training=replace(config.teacher.training, epochs=1)))
    with_logits, without = (shop.prepare(one).condensed for one in (quick, replace(quick, store_logits=False)))
    assert (with_logits.has_logits, without.has_logits) == (True, False)
    teacher = shop.teacher(quick)
    torch.testing.assert_close(with_logits.logits, teacher.batched_logits(with_logits.images))


@pytest.mark.parametrize("name", ["fast", "cmi", "deep_inversion"])
def test_the_adversarial_term_counts_no_pixel_that_the_shift_moved_in(name, prepared):
    teacher, inversion, marked = prepared.teacher, INVERSIONS[name], 1e4
    call = Round(inversion, teacher, teacher.network, Unguided(), equal_weights, Streams(0))
    labels = prepared.condensed.labels.clone()
    labels[:, :2] = UNLABELLED  # void in a layout: the image has these pixels
    images = prepared.condensed.images + marked
    moved, targets, inside = call.augmented(images, Targets(labels))
    assert torch.equal(inside == UNLABELLED, moved[:, 0] < marked / 2)
    assert bool((inside == UNLABELLED).any()) == (name != "deep_inversion")
    void = targets.labels == UNLABELLED
    assert (void & (inside != UNLABELLED)).any()
    values = torch.where(inside == UNLABELLED, torch.inf, 1.0)
    observation = Observation(moved, moved, torch.empty(2, 0), inside=inside)
    batch = StepBatch(images, moved, observation, targets, torch.ones(len(images)))
    assert batch.mean(values) == 1


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.name)
def test_every_memory_keeps_and_draws_masks(memory, prepared):
    outcome = finished(dense_config(memory=memory, weighing=Modulating()), prepared)
    assert outcome.metrics["memory/bytes"] > 0
    assert sum(outcome.held["class"]) > 0


@pytest.mark.parametrize("guidance", GUIDANCES, ids=lambda guidance: guidance.name)
@pytest.mark.parametrize("name", INVERSIONS)
def test_every_guidance_moves_the_images_of_every_host(name, guidance, prepared):
    memory = Latest() if INVERSIONS[name].fresh_each_round else Growing()
    base = dense_config(inversion=INVERSIONS[name], memory=memory, rounds=2)
    plain, guided = (
        rounds(replace(base, guidance=one), prepared, 2) for one in (NoGuidance(), replace(guidance, weight=100.0))
    )
    ids = torch.arange(plain[1].num_ids)[-8:]
    assert not torch.equal(plain[1].gather(ids).images, guided[1].gather(ids).images)
    assert [term for term in guided[0].history[-1] if term.startswith("guidance/")]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=lambda guidance: guidance.name)
def test_with_weight_0_a_guided_trial_equals_the_mixed_one_bit_for_bit(guidance, prepared):
    base = dense_config(targets=Layouts())
    left, right = (finished(replace(base, guidance=g), prepared) for g in (replace(guidance, weight=0.0), NoGuidance()))
    own = ("guidance/", "inversion/guide")
    rows = [
        [{k: v for k, v in row.items() if not k.startswith(own)} for row in numbers(one.history)]
        for one in (left, right)
    ]
    assert rows[0] == rows[1]
    assert torch.equal(left.images, right.images)


def test_the_proxy_set_compares_no_pixel_without_a_label(prepared):
    teacher, proxy = prepared.teacher, prepared.proxy
    student, known = STUDENT.build(teacher.image_shape, NUM_CLASSES).eval(), proxy.labels != UNLABELLED
    assert 0.7 < known.double().mean() < 0.98, "the shifts move pixels in"
    own, wanted = (network(proxy.images).detach().double() for network in (student, teacher.network))
    kl = (wanted.softmax(1) * (wanted.log_softmax(1) - own.log_softmax(1))).sum(1)
    found = compare_pixels(student, proxy, teacher)
    torch.testing.assert_close(found["kl"].item(), kl[known].mean().item(), rtol=1e-4, atol=0)
    agree = own.argmax(1) == wanted.argmax(1)
    torch.testing.assert_close(found["agreement"].item(), agree[known].double().mean().item())


def test_a_round_measures_images_spread_over_the_test_set():
    labels = torch.arange(250, dtype=torch.int16).view(-1, 1, 1)
    images = RealImages(torch.zeros(250, 1, 1, 1, dtype=torch.uint8), labels)
    shown = in_round(images, "subset").labels.flatten()
    assert (len(shown), len(shown.unique()), shown[0], shown[-1]) == (DENSE_SUBSET, DENSE_SUBSET, 0, 249)
    assert shown.diff().amax() == 3
    assert torch.equal(in_round(images, "full").labels, labels)
    assert torch.equal(in_round(images[:80], "subset").labels, labels[:80])


@pytest.mark.parametrize("name", INVERSIONS)
def test_a_resumed_trial_equals_an_uninterrupted_one_bit_for_bit(name, tmp_path, prepared):
    memory = Latest() if INVERSIONS[name].fresh_each_round else Prioritized(scale=0.5)
    config = dense_config(inversion=INVERSIONS[name], memory=memory, guidance=Discriminator(), weighing=Modulating())
    if INVERSIONS[name].uses_targets != "none":
        config = replace(config, targets=Layouts())
    whole, store = rounds(config, prepared, 3)
    first, _ = rounds(config, prepared, 2, tmp_path)
    states.save(first, tmp_path / "state")
    again = local_store(config, prepared, tmp_path)
    resumed = start(config, prepared)
    states.load(resumed, tmp_path / "state")
    again.restore(resumed.num_ids, config.memory.live(resumed.memory))
    run_round(config, prepared, resumed, again)
    assert numbers(resumed.history) == numbers(whole.history)
    ids = config.memory.live(whole.memory)
    assert same_images(again.gather(ids), store.gather(ids))
    for left, right in zip(
        whole.distiller.student.state_dict().values(), resumed.distiller.student.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right)


def test_the_outcome_has_the_iou_of_each_class_and_rows_of_coloured_masks(tmp_path, prepared):
    config = dense_config()
    path = product_path(tmp_path)
    outcome = finished(config, prepared, product=path)
    product = states.load(Product(), path)
    student = config.student.build(prepared.teacher.image_shape, 4)
    student.load_state_dict(product.student)
    real = prepared.test.samples(prepared.teacher.mean, prepared.teacher.std)
    with torch.no_grad():
        predicted = student.eval()(real.images).argmax(1)
    counts = confusion(predicted, real.labels, 4)
    assert outcome.metrics["student/test_miou"] == mean_iou(counts).item()
    ious = {name: outcome.metrics[f"{IOU}{name}"] for name in CLASS_NAMES if f"{IOU}{name}" in outcome.metrics}
    assert ious == {n: v for n, v in zip(CLASS_NAMES, class_iou(counts).tolist(), strict=True) if v == v}
    assert outcome.predictions == []
    assert outcome.grid_rows == ["synthetic images", "teacher", "student", "test images", "masks", "teacher", "student"]
    each = outcome.images_per_class
    assert outcome.images.shape == (7 * each, 3, 12, 16)
    row = outcome.images.split(each)
    assert torch.equal(row[4], coloured(real.labels[torch.linspace(0, 23, each).round().long()]))
    assert torch.equal(row[6], coloured(predicted[torch.linspace(0, 23, each).round().long()]))
    assert product.logits is None
    assert product.labels.shape == (24, 12, 16)
    assert not product.samples.has_logits


def test_no_test_image_is_used_before_the_outcome_is_reported(prepared):
    seen = []
    finished(dense_config(), prepared, before_test=seen.append)
    assert seen[0].grid_rows == ["synthetic images", "teacher", "student"]
    assert not [name for name in seen[0].metrics if "test" in name]


def test_a_trial_without_an_inversion_shows_the_labelled_images(prepared):
    distiller = Distiller(steps=2, batch=8, condensed_share=1.0)
    outcome = finished(dense_config(inversion=NoInversion(), distiller=distiller), prepared)
    assert outcome.grid_rows[:3] == ["labelled images", "masks", "student"]
    each = outcome.images_per_class
    assert torch.equal(outcome.images.split(each)[1], coloured(prepared.condensed.labels[:each]))
    assert outcome.held == {}


def test_the_histograms_count_pixels(prepared):
    outcome = finished(dense_config(), prepared)
    assert sum(outcome.held["class"]) == 3 * 8 * 12 * 16
    assert sum(outcome.held["confidence"]) == 3 * 8 * 12 * 16


def test_distillation_from_labelled_images_raises_the_mean_iou(prepared):
    distiller = Distiller(steps=100, batch=4, condensed_share=1.0, loss=Hinton(temperature=1.0))
    config = dense_config(inversion=NoInversion(), distiller=distiller, rounds=4)
    outcome = finished(replace(config, student=replace(config.student, width=8)), prepared)
    assert outcome.metrics["student/test_miou"] > 0.6


@pytest.mark.parametrize(
    ("tree", "what", "works"),
    [
        ({"inversion": "nayer"}, "inversion", "deep_inversion, dafl, dfad"),
        ({"inversion": "soft_target"}, "inversion", "fast"),
        ({"student": {"name": "resnet"}}, "student", "deeplab_resnet"),
        ({"teacher": {"network": {"name": "lenet5"}}}, "teacher.network", "deeplab_resnet"),
        ({"condensation": {"name": "distribution_matching"}}, "condensation", "random_real"),
        ({"memory": "generative"}, "memory", "growing"),
        ({"distiller": {"loss": "dkd"}}, "distiller.loss", "hinton"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_needs_one_label_an_image_is_refused_with_what_works(tree, what, works):
    networks = {"teacher": {"network": {"name": "deeplab_resnet"}}, "student": {"name": "deeplab_resnet"}}
    message = rf"{re.escape(what)} for segmentation \(data scenes\) is '\w+'; accepted: .*{works}"
    with pytest.raises(InputError, match=message):
        from_tree({"data": {"name": "scenes"}, **networks, **tree})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"student": {"name": "deeplab_resnet"}}, "student for classification .* accepted: .*resnet18"),
        ({"targets": "layouts"}, "targets for classification"),
        ({"store_logits": True}, "store_logits is True; accepted: false"),
    ],
    ids=["network", "targets", "store_logits"],
)
def test_classification_refuses_what_needs_labels_of_pixels(tree, message):
    with pytest.raises(InputError, match=message):
        from_tree(tree)


def test_a_model_of_torchvision_for_the_other_task_is_named_in_the_message():
    networks = {"teacher": {"network": {"name": "deeplab_resnet"}}, "student": {"name": "torchvision"}}
    message = "is 'torchvision:resnet18'; accepted: torchvision with a model for segmentation, deeplab"
    with pytest.raises(InputError, match=message):
        from_tree({"data": {"name": "scenes"}, **networks})


def test_layouts_need_a_condensed_set_and_an_inversion_that_uses_targets():
    with pytest.raises(InputError, match="targets layouts without a condensation"):
        dense_config(condensation=None, targets=Layouts(), distiller=Distiller(steps=2, batch=8))
    with pytest.raises(InputError, match="targets for inversion dfad is 'layouts'; accepted: balanced"):
        dense_config(inversion=INVERSIONS["dfad"], targets=Layouts())


def test_dsa_of_the_student_and_of_the_guide_is_refused():
    distiller = Distiller(steps=2, batch=8, condensed_share=0.5, condensed_augment="dsa")
    with pytest.raises(InputError, match="condensed_augment for segmentation is 'dsa'"):
        dense_config(distiller=distiller)
    for augment in ("dsa", "condensed"):
        with pytest.raises(InputError, match=f"guidance augment in segmentation is '{augment}'; accepted: host"):
            dense_config(guidance=Moments(augment=augment))


def test_guides_as_starting_images_are_refused():
    with pytest.raises(InputError, match=r"from_guides share in segmentation is 0\.5; accepted: 0"):
        dense_config(guidance=Moments(from_guides=FromGuides(share=0.5)))


def test_unbiased_distances_of_regions_are_refused():
    with pytest.raises(InputError, match="gaussian unbiased in segmentation is True; accepted: false"):
        dense_config(guidance=Gaussian(unbiased=True))


@pytest.mark.parametrize("method", [RandomReal(ipc=393), Herding(ipc=393)])
def test_more_labelled_images_than_the_proxy_set_leaves_are_refused_before_the_choice(method, tmp_path, monkeypatch):
    monkeypatch.setattr(type(method), "condense", lambda *_, **__: pytest.fail("images were chosen"))
    config = dense_config(condensation=method)
    workshop = Workshop(tmp_path)
    message = r"\(condensation\.ipc\) is 393; accepted: at most 392: 400 labelled images less the 8 of the proxy set"
    for begin in (workshop.check, workshop.condensed):
        with pytest.raises(InputError, match=message):
            begin(config)
    assert not list(tmp_path.iterdir())
    workshop.check(replace(config, condensation=replace(method, ipc=392)))
