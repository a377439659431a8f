import numpy as np
import pytest
import torch
from contracts.toy_guides import LABELS, bound, fakes, step
from sklearn.covariance import ledoit_wolf, oas
from toy import MEAN, NUM_CLASSES, STD, blobs, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Gaussian
from condkd_ray.methods.guidance.gaussian import as_sampled, contrasts, gaussian_class
from condkd_ray.methods.guidance.guidance import Layout

RNG = torch.Generator().manual_seed(0)
GUIDES, FAKES = 2 * torch.randn(12, 6, generator=RNG) + 1, torch.randn(14, 6, generator=RNG)
GUIDE_LABELS, FAKE_LABELS = torch.arange(12) % 3, torch.arange(14) % 4
each_shrinkage = pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas", "none"])


def started(labels=GUIDE_LABELS, guides=GUIDES, layout=Layout(), **settings):  # noqa: B008
    guidance = Gaussian(**settings)
    return guidance, guidance.init(make_teacher(), guides, labels, Streams(0), layout)


def within(features, labels):
    """Return the covariance within classes and its degrees of freedom, computed in a loop over classes."""
    scatter, freedom = np.zeros((features.shape[1],) * 2), 0
    for label in np.unique(labels):
        rest = features[labels == label] - features[labels == label].mean(0)
        scatter += rest.T @ rest
        freedom += len(rest) - 1
    return scatter / freedom, freedom


@each_shrinkage
def test_the_moments_are_those_of_the_guides(shrinkage):
    guides = GUIDES * torch.tensor([8.0, 2.0, 1.0, 0.5, 0.3, 0.1])
    _, state = started(guides=guides, shrinkage=shrinkage)
    scaled = (guides / guides.square().sum(1).mean().sqrt()).double().numpy()
    for label in range(3):
        np.testing.assert_allclose(state.means[label], scaled[label == GUIDE_LABELS].mean(0), rtol=1e-4, atol=1e-6)
    assert state.known.tolist() == [1, 1, 1, 0]
    found, (wanted, freedom) = state.covariances[0].numpy(), within(scaled, GUIDE_LABELS.numpy())
    if shrinkage == "none":
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
        return
    draws = contrasts(scaled, GUIDE_LABELS.numpy())
    assert len(draws) == freedom
    share = {"ledoit_wolf": ledoit_wolf, "oas": oas}[shrinkage](draws, assume_centered=True)[1]
    assert 0.05 < share < 1
    target = (1 - share) * wanted + share * np.trace(wanted) / 6 * np.eye(6)
    np.testing.assert_allclose(found, target, rtol=1e-4, atol=1e-6)


def test_contrasts_have_the_covariance_within_groups_and_a_row_per_degree_of_freedom():
    features, groups = GUIDES.double().numpy(), np.array([0, 0, 1, 2, 2, 2, 0, 2, 0, 4, 4, 5])
    draws, (wanted, freedom) = contrasts(features, groups), within(features, groups)
    assert len(draws) == freedom == 7
    np.testing.assert_allclose(draws.T @ draws / freedom, wanted, rtol=1e-9)


@pytest.mark.parametrize("several", [True, False])
def test_the_covariance_is_within_each_view_or_across_views_if_classes_have_one_image(several):
    images = 8 if several else 4
    each = torch.randn(5, images, 6, generator=RNG)
    labels = torch.arange(images) % 4
    guides = each.reshape(-1, 6)
    _, state = started(labels.repeat(5), guides, Layout((), 5), shrinkage="none")
    scaled = (each / guides.square().sum(1).mean().sqrt()).double().numpy()
    if several:
        wanted = np.mean([within(view, labels.numpy())[0] for view in scaled], axis=0)
    else:
        wanted, _ = within(scaled.reshape(-1, 6), np.tile(labels.numpy(), 5))
    np.testing.assert_allclose(state.covariances[0], wanted, rtol=1e-4, atol=1e-6)
    centre = scaled.reshape(-1, 6)[np.tile(labels.numpy(), 5) == 1].mean(0)
    np.testing.assert_allclose(state.means[1], centre, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_penalty_equals_the_formula(unbiased):
    guidance, state = started(unbiased=unbiased, covariance_weight=2.0)
    fake, labels = (state.scale * FAKES).double().numpy(), FAKE_LABELS.numpy()
    spread, freedom = within(fake, labels)
    target = state.covariances[0].double().numpy()
    means = []
    for label in range(3):
        own = fake[labels == label]
        apart = ((own.mean(0) - state.means[label].double().numpy()) ** 2).sum()
        means.append(apart - np.trace(spread) / len(own) if unbiased else apart)
    wanted = (1 + 1 / freedom) * target + np.trace(target) / freedom * np.eye(6) if unbiased else target
    covariance = ((spread - wanted) ** 2).sum() / (target**2).sum()
    found = guidance.penalty(state, FAKES, FAKE_LABELS, rng=RNG).item()
    assert found == pytest.approx(np.mean(means) + 2 * covariance, rel=1e-4)
    logged = guidance.update(state, FAKES, FAKES[:0], FAKE_LABELS, rng=RNG)
    assert {name: value.item() for name, value in logged.items()} == pytest.approx(
        {"mean": np.mean(means), "covariance": covariance}, rel=1e-4
    )


def test_marginal_is_the_mean_and_total_covariance_of_the_mixture():
    guidance, state = started(alignment="marginal", shrinkage="none", covariance_weight=2.0)
    known = FAKE_LABELS < 3
    fake, labels = (state.scale * FAKES[known]).double().numpy(), FAKE_LABELS[known].numpy()
    centres = state.means.double().numpy()[labels]
    centre, count = centres.mean(0), len(labels)
    between = np.mean([np.outer(row - centre, row - centre) for row in centres], axis=0)
    total = between + (1 - 1 / count) * state.covariances[0].double().numpy()
    spread = np.cov(fake.T, bias=True)
    wanted = ((fake.mean(0) - centre) ** 2).sum() + 2 * ((spread - total) ** 2).sum() / (total**2).sum()
    assert guidance.penalty(state, FAKES, FAKE_LABELS, rng=RNG).item() == pytest.approx(wanted, rel=1e-4)
    # The penalty does not depend on which image of the batch has which label.
    moved = guidance.penalty(state, FAKES[known], FAKE_LABELS[known].flip(0), rng=RNG).item()
    assert moved == pytest.approx(wanted, rel=1e-4)


def drawn(state, count, shrink=1.0):
    """Return features drawn from the state's distribution, with deviations scaled by `shrink`, and their labels."""
    labels = torch.arange(count) % 3
    root = torch.linalg.cholesky(state.covariances[0])
    return (state.means[labels] + shrink * torch.randn(count, 6, generator=RNG) @ root.T) / state.scale, labels


def test_the_distance_of_means_of_perfect_fakes_is_0_on_average_only_if_unbiased():
    for unbiased in (True, False):
        guidance, state = started(unbiased=unbiased)
        found = torch.stack([guidance.distances(state, *drawn(state, 12))["mean"] for _ in range(400)])
        error = found.std() / 20
        assert (abs(found.mean()) < 4 * error) == unbiased


@pytest.mark.parametrize("shrinkage", ["oas", "none"])
def test_the_covariance_distance_is_least_at_the_true_distribution_only_if_unbiased(shrinkage):
    """The distances at 0.99 and 1.01 times the true deviation differ by 0 on average if `unbiased`."""
    for unbiased in (True, False):
        guidance, state = started(unbiased=unbiased, shrinkage=shrinkage)
        slopes = []
        for factor in (0.99, 1.01):
            rng = torch.Generator().manual_seed(1)
            draws = [torch.randn(12, 6, generator=rng) for _ in range(3000)]
            labels, root = torch.arange(12) % 3, torch.linalg.cholesky(state.covariances[0])
            fakes = [(state.means[labels] + factor * draw @ root.T) / state.scale for draw in draws]
            slopes.append(torch.stack([guidance.distances(state, fake, labels)["covariance"] for fake in fakes]))
        change = slopes[1] - slopes[0]
        error = change.std() / len(change) ** 0.5
        assert (abs(change.mean()) < 4 * error) == unbiased
        assert unbiased or change.mean() > 0  # the biased distance is least at a narrower distribution


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("size", [20, 64])
def test_directly_optimised_features_do_not_spread_without_bound(unbiased, size):
    """This also holds if a batch has fewer features than dimensions, so that its covariance is singular."""
    rng = torch.Generator().manual_seed(0)
    guides, labels = torch.randn(80, size, generator=rng), torch.arange(80) % 4
    guidance, state = started(labels, guides, unbiased=unbiased)
    known = torch.arange(16) % 4
    features = guides[:16].clone().requires_grad_()
    optimizer = torch.optim.Adam([features], 0.02)
    for _ in range(400):
        loss = guidance.penalty(state, features, known, rng=RNG)
        (features.grad,) = torch.autograd.grad(loss, [features])
        optimizer.step()
    trace = np.trace(within((state.scale * features).detach().numpy(), known.numpy())[0])
    # The covariance of 16 features of 4 classes has at most rank 12, which limits its trace.
    target = state.covariances[0].trace().item()
    assert 0.8 * 12 / size * target < trace < (12 if unbiased else 1.2) * target
    assert guidance.distances(state, features, known)["covariance"] >= 0


def test_the_target_of_batch_covariances_is_larger_for_fewer_degrees_of_freedom():
    covariance = torch.diag(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(as_sampled(covariance, torch.tensor(4.0)), torch.diag(torch.tensor([2.25, 4.75])))
    torch.testing.assert_close(as_sampled(covariance, torch.tensor(1e9)), covariance)


def test_a_batch_without_two_fakes_a_class_is_refused_where_covariances_are_compared():
    teacher = make_teacher()
    guidance = Gaussian()
    with pytest.raises(InputError, match="inversion batch under guidance gaussian is 7; accepted: 8 or more"):
        guidance.check_use(teacher, 10, 7, lambda images, stream: images)
    guidance.check_use(teacher, 10, 8, lambda images, stream: images)
    Gaussian(covariance="none").check_use(teacher, 1, 2, lambda images, stream: images)
    Gaussian(alignment="marginal").check_use(teacher, 10, 2, lambda images, stream: images)


def test_stages_do_not_change_the_scale_of_the_main_layer():
    plain, beside = (
        started()[1],
        started(guides=torch.cat([GUIDES, 5 * GUIDES], 1), layout=Layout((6, 6), 1), stages=1)[1],
    )
    assert torch.equal(plain.scale, beside.scale)
    assert torch.equal(plain.means, beside.means[:, :6])
    torch.testing.assert_close(plain.covariances[0], beside.covariances[0])


def test_narrower_fakes_have_a_higher_penalty_only_if_unbiased():
    """This is the reason for the correction: the biased distance of means is least for collapsed fakes."""
    found = {}
    for unbiased in (True, False):
        guidance, state = started(unbiased=unbiased, covariance_weight=0.03)
        for shrink in (1.0, 0.5):
            draws = [guidance.penalty(state, *drawn(state, 9, shrink), rng=RNG) for _ in range(600)]
            found[unbiased, shrink] = torch.stack(draws).mean()
    assert found[True, 0.5] > found[True, 1.0]
    assert found[False, 0.5] < found[False, 1.0]


@pytest.mark.parametrize("alignment", ["class", "marginal"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_gradients_equal_finite_differences(alignment, unbiased):
    guidance, state = started(alignment=alignment, unbiased=unbiased)
    state.scale, state.means, state.known = (x.double() for x in (state.scale, state.means, state.known))
    state.covariances = tuple(x.double() for x in state.covariances)
    left = FAKES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: guidance.penalty(state, x, FAKE_LABELS, rng=RNG), (left,))


def test_gradient_descent_on_the_penalty_matches_the_moments():
    guidance, state = started(unbiased=False, shrinkage="none")
    labels = torch.arange(30) % 3
    features = torch.randn(30, 6, generator=RNG).requires_grad_()
    optimizer = torch.optim.Adam([features], 0.05)
    first = guidance.penalty(state, features, labels, rng=RNG).item()
    for _ in range(400):
        (features.grad,) = torch.autograd.grad(guidance.penalty(state, features, labels, rng=RNG), [features])
        optimizer.step()
    assert guidance.penalty(state, features, labels, rng=RNG).item() < 1e-3 * first


def test_a_batch_of_one_fake_a_class_is_matched_by_means_alone():
    guidance, state = started()
    features = FAKES[:3].clone().requires_grad_()
    found = guidance.distances(state, features, torch.arange(3))
    assert found["covariance"] == 0
    (gradient,) = torch.autograd.grad(sum(found.values()), [features])
    assert gradient.isfinite().all()


def test_the_penalty_does_not_depend_on_the_scale_of_the_features():
    (guidance, state), (_, other) = started(), started(guides=100 * GUIDES)
    once, scaled = (guidance.penalty(s, f * FAKES, FAKE_LABELS, rng=RNG).item() for s, f in ((state, 1), (other, 100)))
    assert scaled == pytest.approx(once, rel=1e-4)


def test_autocast_does_not_change_the_penalty():
    guidance, state = started()
    wanted = guidance.penalty(state, FAKES, FAKE_LABELS, rng=RNG)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guidance.penalty(state, FAKES, FAKE_LABELS, rng=RNG), wanted)


@pytest.mark.parametrize("settings", [{"covariance": "none"}, {"covariance_weight": 0.0}], ids=str)
def test_without_covariances_the_penalty_compares_means_alone(settings):
    guidance, state = started(**settings)
    assert state.covariances == ()
    rows = [(state.scale * FAKES)[label == FAKE_LABELS].mean(0) - state.means[label] for label in range(3)]
    wanted = torch.stack(rows).square().sum(1).mean().item()
    assert guidance.penalty(state, FAKES, FAKE_LABELS, rng=RNG).item() == pytest.approx(wanted, rel=1e-4)
    assert guidance.update(state, FAKES, FAKES[:0], FAKE_LABELS, rng=RNG).keys() == {"mean"}


# The initial state, and the images that are observed.


def noisy(images, stream):
    """An example of a host's augmentation."""
    return images + 0.3 * torch.randn(images.shape, generator=stream)


@pytest.mark.parametrize("augment", ["host", "condensed", "dsa"])
def test_steps_observe_no_condensed_images(augment):
    teacher = make_teacher()
    guide, carried = bound(Gaussian(augment=augment, views=3), teacher=teacher, host_augment=noisy)
    observed, real = [], teacher.observe
    teacher.observe = lambda images, *rest, **options: (observed.append(images), real(images, *rest, **options))[1]
    guide.update(fakes(), real(fakes(), guide.layers), LABELS)
    # With DSA, a step observes its own view of the fakes.
    assert [len(images) for images in observed] == ([len(LABELS)] if augment == "dsa" else [])
    assert carried.covariances[0].trace() > 0


@pytest.mark.parametrize("augment", ["host", "dsa"])
def test_the_moments_are_computed_under_the_augmentation_of_the_fakes(augment):
    teacher, few = make_teacher(), blobs(NUM_CLASSES, seed=4).samples(MEAN, STD)
    _, carried = bound(Gaussian(augment=augment, views=64), teacher=teacher, condensed=few, host_augment=noisy)
    rng, guidance = Streams(1), Gaussian(augment=augment)
    with torch.no_grad():
        views = [guidance.view(few.images, teacher, noisy, rng) for _ in range(64)]
        features = teacher.observe(torch.cat(views)).features * carried.scale
    means = features.view(64, NUM_CLASSES, -1).mean(0)
    plain = teacher.observe(few.images).features * carried.scale
    assert (means - carried.means).norm() < 0.5 * (plain - carried.means).norm()
    spread, _ = within(features.double().numpy(), few.labels.repeat(64).numpy())
    assert carried.covariances[0].trace().item() == pytest.approx(np.trace(spread), rel=0.2)


def test_many_images_have_fewer_views(monkeypatch):
    from condkd_ray.methods.guidance import guidance as module

    monkeypatch.setattr(module, "MAX_INIT_FEATURES", 20)
    seen, teacher = [], make_teacher()
    _, _ = bound(Gaussian(views=16), teacher=teacher, host_augment=lambda images, stream: (seen.append(1), images)[1])
    assert len(seen) == 2


def test_covariances_of_one_image_a_class_without_augmentation_are_refused():
    one = blobs(NUM_CLASSES, seed=4).samples(MEAN, STD)
    accepted = "above 0: views that differ .augment dsa., or covariance none"
    with pytest.raises(InputError, match=f"spread of the condensed features within their classes is .*{accepted}"):
        bound(Gaussian(), condensed=one)
    for guidance in (Gaussian(augment="dsa"), Gaussian(covariance="none")):
        teacher = make_teacher()
        guide, _ = bound(guidance, teacher=teacher, condensed=one)
        assert step(guide, fakes(), teacher)[1].abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "gaussian views is 0; accepted: an integer >= 1"),
        ({"covariance_weight": -0.5}, "covariance_weight is -0.5; accepted: >= 0"),
        ({"mixup": 0.5}, "gaussian mixup is 0.5; accepted: 0: it reads no condensed images in a step"),
        ({"noise": 0.5}, "gaussian noise is 0.5; accepted: 0: it reads no condensed images in a step"),
    ],
)
def test_unsupported_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Gaussian(**settings)


def test_the_distance_of_several_layers_is_the_weighted_sum_of_their_distances():
    layout = Layout((2, 3, 1))
    guidance, state = started(layout=layout, stages_weight=0.5, stage_covariances=True)
    assert [len(x) for x in state.covariances] == [2, 3, 1]
    wanted = [0.0, 0.0]
    sides = zip(layout.split(state.scale * FAKES), layout.split(state.means), state.covariances, strict=True)
    for weight, (fake, means, covariance) in zip((1.0, 0.5, 0.5), sides, strict=True):
        found = gaussian_class(guidance, Layout(), fake, FAKE_LABELS, means, state.known, (covariance,))
        wanted = [total + weight * value.item() for total, value in zip(wanted, found, strict=True)]
    found = guidance.distances(state, FAKES, FAKE_LABELS)
    assert [value.item() for value in found.values()] == pytest.approx(wanted, rel=1e-4)
    _, means_alone = started(layout=layout)
    assert len(means_alone.covariances) == 1
