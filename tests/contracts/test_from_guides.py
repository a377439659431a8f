"""The contract of hosts that can start batches from condensed images (`condkd_ray.methods.guidance.from_guides`)."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import yaml
from toy import blobs, make_prepared, make_teacher, toy_config

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import to_unit
from condkd_ray.methods.guidance import Discriminator, FromGuides, Mmd, NoGuidance
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Cmi, DeepInversion, Fast, Nayer, SoftTarget, fast
from condkd_ray.methods.inversion.inversion import Round
from condkd_ray.methods.targets import Soft
from condkd_ray.trial import config
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.plan import production_key
from condkd_ray.trial.run import local_store
from contracts.toy_guides import LABELS, bound, each_guidance
from contracts.toy_methods import INVERTERS, ConstantPenalties, same, small, synthesize
from contracts.toy_trials import assert_resumes, numbers

STARTING = [kind for kind in INVERTERS if kind.starts_from_images]
PIXELS = [DeepInversion, SoftTarget]
HALF = FromGuides(share=0.5, noise=0.0)
each_host = pytest.mark.parametrize("kind", STARTING, ids=lambda kind: kind.__name__)


class Starter(ConstantPenalties):
    """Records calls, gives the first step the lowest loss, and starts batches as `guide` does."""

    def __init__(self, guide, steps=3):
        super().__init__(-1e6, *[0.0] * (steps - 1))
        self.guide, self.started = guide, None

    def start(self, labels):
        self.started = self.guide.start(labels)
        return self.started


def first_images(kind, from_guides, *, rng=None, steps=3, **changes):
    """Return the images of a host's first step, the start of the batch, and the round's metrics."""
    teacher, rng = make_teacher(), rng or Streams(0)
    guide = Starter(bound(small(Mmd, from_guides=from_guides), teacher=teacher, rng=rng)[0], steps)
    inversion = small(kind, steps=steps, **changes)
    _, metrics = synthesize(inversion, inversion.init(teacher, rng), teacher=teacher, rng=rng, guide=guide)
    return guide.penalty_calls[0], guide.started, metrics


def test_hosts_that_optimise_pixels_or_latents_have_the_option():
    assert set(STARTING) == {Fast, Cmi, Nayer, DeepInversion, SoftTarget}


@each_guidance
def test_a_guide_returns_condensed_images_for_the_first_labels(kind):
    teacher, condensed = make_teacher(), blobs(40, seed=4)
    condensed = condensed.samples(teacher.mean, teacher.std)
    guidance = small(kind, from_guides=FromGuides(share=0.5, noise=0.3, steps=7, lr=0.2))
    guidance = replace(guidance, held_out=0.5) if kind is Discriminator else guidance
    guide, _ = bound(guidance, teacher=teacher, condensed=condensed)
    found = guide.start(LABELS)
    assert (len(found.images), found.steps, found.lr) == (8, 7, 0.2)
    for image, label in zip(found.images, LABELS[:8], strict=True):
        (row,) = (condensed.images == image).flatten(1).all(1).nonzero().flatten().tolist()
        assert condensed.labels[row] == label
        # Held-out images are not used as starts, so that they stay independent of the synthetic images.
        assert kind is not Discriminator or row < 20
    assert (found.noisy - found.images).std().item() == pytest.approx(0.3, rel=0.1)


@each_guidance
def test_starts_are_drawn_from_their_own_stream(kind):
    rng = Streams(0)
    guide, _ = bound(small(kind, from_guides=HALF), rng=rng)
    before = rng.state_dict()
    guide.start(LABELS)
    after = rng.state_dict()
    assert after["device"].pop("start") is not None
    assert "start" not in before["device"]
    assert same(after, before)


@each_guidance
def test_by_default_there_is_no_start_and_no_draw(kind):
    rng = Streams(0)
    guide, _ = bound(small(kind), rng=rng)
    before = rng.state_dict()
    assert guide.start(LABELS) is None
    assert same(rng.state_dict(), before)
    assert Unguided().start(LABELS) is None


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1e-6, 1), (0.25, 4), (1.0, 16)])
def test_a_share_above_0_of_a_batch_is_rounded_to_at_least_one_image(share, count):
    assert FromGuides(share=share).count(16) == count


@pytest.mark.parametrize("kind", PIXELS, ids=lambda kind: kind.__name__)
def test_pixels_start_at_condensed_images_and_the_others_at_the_same_noise(kind):
    plain, _, _ = first_images(kind, FromGuides())
    exact, started, _ = first_images(kind, HALF)
    assert torch.equal(exact[:8], started.images)
    assert torch.equal(exact[8:], plain[8:])
    noisy, started, _ = first_images(kind, FromGuides(share=0.5, noise=2.0))
    pixels = to_unit(noisy, (0.25,), (0.25,))
    assert pixels.min() >= -1e-5
    assert pixels.max() <= 1 + 1e-5
    inside = (started.noisy > -1) & (started.noisy < 3)
    assert torch.equal(noisy[:8][inside], started.noisy[inside])
    assert not torch.equal(noisy[:8], started.images)


@pytest.mark.parametrize("kind", [kind for kind in STARTING if kind not in PIXELS], ids=lambda kind: kind.__name__)
def test_generated_images_get_closer_to_the_condensed_images_with_each_step(kind):
    found = []
    plain, _, _ = first_images(kind, FromGuides())
    for count in (1, 10, 60):
        images, started, metrics = first_images(kind, replace(HALF, steps=count))
        found.append(F.mse_loss(images[:8], started.images).item())
        assert metrics["inversion/start"] > 0
    before = F.mse_loss(plain[:8], started.images).item()
    assert before > found[0] > found[1] > found[2]
    assert found[2] < 0.9 * before


@each_host
def test_the_hosts_other_draws_are_unchanged(kind):
    states = []
    for from_guides in (FromGuides(), HALF):
        rng = Streams(0)
        first_images(kind, from_guides, rng=rng)
        states.append(rng.state_dict()["device"])
    plain, started = states
    assert started.keys() - plain.keys() == {"start"}
    assert all(torch.equal(started[name], plain[name]) for name in plain)


@each_host
def test_a_guide_without_start_does_not_change_the_host(kind):
    teacher, guide = make_teacher(), ConstantPenalties(*[0.0] * 3)
    assert not hasattr(guide, "start")
    older, _ = synthesize(small(kind), teacher=teacher, guide=guide)
    assert torch.equal(older.images, synthesize(small(kind), guide=Unguided())[0].images)


def test_fast_moves_only_latents_and_without_meta_steps(monkeypatch):
    """Compared with a direct implementation."""
    added, add = [], fast.add_gradients
    monkeypatch.setattr(fast, "add_gradients", lambda *given: (added.append(1), add(*given)))
    images, started, metrics = first_images(Fast, replace(HALF, steps=4))
    assert len(added) == 3
    teacher, rng = make_teacher(), Streams(0)
    method = small(Fast)
    generator = method.init(teacher, rng).generator
    latents = torch.randn(method.batch, method.latent, generator=rng["latents"]).requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.05, betas=(0.5, 0.999))
    for _ in range(4):
        optimizer.zero_grad()
        made = (generator(latents) - 0.25) / 0.25
        distance = (made[:8] - started.images).square().mean()
        distance.backward()
        latents.grad[8:] = 0
        optimizer.step()
    assert metrics["inversion/start"] == pytest.approx(distance.item(), rel=1e-4)
    torch.testing.assert_close(images, (generator(latents) - 0.25) / 0.25, rtol=1e-3, atol=1e-4)


def tensors_of_start(kind, monkeypatch, share=0.25):
    """Return the tensors that a start changes, before and after, and the rows of latents that it may change."""
    found, approach = [], Round.start_near_guides

    def copies(leaves):
        return [leaf.detach().clone() for leaf in leaves]

    def watched(now, make, labels, latents, rows=None, weights=()):
        before = copies(latents), copies(weights)
        approach(now, make, labels, latents, rows, weights)
        count = FromGuides(share=share).count(len(labels))
        own = torch.arange(count) if rows is None else rows[:count].unique()
        after = copies(latents), copies(weights)
        found.append((*(list(zip(*pair, strict=True)) for pair in zip(before, after, strict=True)), own))

    monkeypatch.setattr(Round, "start_near_guides", watched)
    first_images(kind, FromGuides(share=share, steps=5))
    (only,) = found
    return only


@pytest.mark.parametrize("kind", [Fast, Cmi, Nayer], ids=lambda kind: kind.__name__)
def test_latents_of_other_images_are_unchanged_bit_for_bit(kind, monkeypatch):
    """BN in the generator gives these latents a small gradient, which Adam would scale up."""
    latents, weights, own = tensors_of_start(kind, monkeypatch)
    for before, after in latents:
        moved = (before != after).flatten(1).any(1)
        assert moved.nonzero().flatten().tolist() == own.tolist()
        assert 0 < len(own) < len(moved)
    assert all(not torch.equal(before, after) for before, after in weights)


def test_a_soft_target_starts_from_a_condensed_image_of_its_label():
    teacher, rng = make_teacher(), Streams(0)
    guide, inversion = Starter(bound(small(Mmd, from_guides=HALF), teacher=teacher)[0]), small(SoftTarget)
    targets = Soft().sample(inversion.batch, teacher, rng=rng)
    given = {"teacher": teacher, "student": teacher.network, "guide": guide, "rng": rng}
    inversion.synthesize(None, targets, weigh=lambda seen, labels: torch.ones(len(labels)), **given)
    condensed = guide.guide.condensed
    rows = [(condensed.images == image).flatten(1).all(1).nonzero().item() for image in guide.penalty_calls[0][:8]]
    assert torch.equal(condensed.labels[rows], targets.labels[:8])


def trial(settings, prepared):
    live, store = start(settings, prepared), local_store(settings, prepared, None)
    for _ in range(settings.rounds):
        run_round(settings, prepared, live, store)
    return live


@each_host
def test_a_trial_continues_from_a_checkpoint_bit_for_bit(kind, tmp_path):
    settings = toy_config(inversion=small(kind), guidance=small(Mmd, from_guides=replace(HALF, steps=2)), rounds=3)
    assert_resumes(settings, tmp_path)


@each_host
def test_a_guidance_with_weight_0_that_starts_from_guides_changes_the_trial(kind):
    prepared = make_prepared()
    found = [
        trial(toy_config(inversion=small(kind), guidance=guidance, rounds=1), prepared)
        for guidance in (NoGuidance(), Mmd(weight=0.0), Mmd(weight=0.0, from_guides=HALF))
    ]
    none, idle, starting = (numbers(live, "guidance/") for live in found)
    assert none == idle
    assert none != starting


def test_condensed_images_are_part_of_the_production_key_if_batches_start_from_them():
    prepared = make_prepared()
    other = replace(prepared, hashes=prepared.hashes | {"condensed": "others"})
    base = toy_config(inversion=small(DeepInversion), guidance=Mmd(weight=0.0, from_guides=HALF))
    assert production_key(base, prepared) != production_key(base, other)
    for guidance in (Mmd(weight=0.0), Mmd(weight=0.0, from_guides=FromGuides(share=0.25, noise=0.0))):
        assert production_key(base, prepared) != production_key(replace(base, guidance=guidance), prepared)


@pytest.mark.parametrize("kind", [kind for kind in INVERTERS if kind not in STARTING], ids=lambda kind: kind.__name__)
def test_a_host_without_latents_rejects_the_option(kind):
    message = rf"from_guides share for inversion {kind().name} is 0\.5; accepted: 0; or an inversion that optimises"
    with pytest.raises(InputError, match=message):
        toy_config(inversion=small(kind), guidance=Mmd(from_guides=HALF))


@pytest.mark.parametrize(
    ("field", "value"),
    [("share", 1.5), ("share", -0.1), ("noise", -1.0), ("noise", float("inf")), ("steps", 0), ("lr", 0.0)],
)
def test_invalid_settings_are_rejected(field, value):
    with pytest.raises(InputError, match=f"from_guides {field} is {value}; accepted: "):
        FromGuides(**{field: value})


def test_config_is_equal_after_yaml():
    complete = toy_config(guidance=Mmd(from_guides=FromGuides(share=0.5, noise=0.2, steps=3, lr=0.1)))
    assert config.from_tree(yaml.safe_load(config.dump(complete))) == complete
