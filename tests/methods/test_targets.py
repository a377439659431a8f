import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import small
from reference.inversion import cosines, softmax
from torch import nn
from toy import MEAN, NUM_CLASSES, STD, make_prepared, make_teacher, toy_config

from condkd_ray.core import checkpoint
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import Cmi, Dafl, DeepInversion, Fast, SoftTarget
from condkd_ray.methods.losses.inversion import class_prior
from condkd_ray.methods.memory import LocalStore
from condkd_ray.methods.supervised import TeacherConfig
from condkd_ray.methods.targets import Soft, correlated
from condkd_ray.methods.weighing import equal_weights
from condkd_ray.models import AlexNet, ConvNet, LeNet5
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.loop import own_images, start
from condkd_ray.trial.synthesis import codec

SHAPE = (1, 16, 16)


def of(network, shape=SHAPE):
    with Streams(0).forked("init/teacher"):
        module = network if isinstance(network, nn.Module) else network.build(shape, NUM_CLASSES)
    return Teacher.from_module(module, num_classes=NUM_CLASSES, image_shape=shape, mean=MEAN, std=STD)


def weights(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def drawn(weight, count=100_000):
    return correlated(weight, count, torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("columns", [3, 16, 40], ids=["singular", "square", "wide"])
def test_the_covariance_is_the_cosines_of_incoming_weights(columns):
    weight = weights(16, columns) * torch.arange(1, 17).view(-1, 1)
    wanted = torch.tensor(cosines(weight.double().tolist()), dtype=torch.float64)
    values = drawn(weight)
    found = values.T @ values / len(values)
    # The relative error of 1e5 draws is about sqrt(d / 1e5) = 0.013 for 16 units without correlation.
    assert torch.linalg.matrix_norm(found - wanted) < 0.02 * torch.linalg.matrix_norm(wanted)
    assert values.mean(0).abs().max() < 5 * 100_000**-0.5
    assert (torch.linalg.matrix_rank(found, rtol=1e-6) < 16) == (columns == 3)


def test_the_covariance_is_not_that_of_outgoing_weights():
    weight = weights(16, 16)
    own, other = (torch.tensor(cosines(rows.tolist())) for rows in (weight, weight.T))
    values = drawn(weight, 10_000).float()
    found = values.T @ values / len(values)
    assert torch.linalg.matrix_norm(found - own) < 0.2 * torch.linalg.matrix_norm(found - other)


def test_kernels_are_flattened_to_rows():
    kernel = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn(kernel, 50), drawn(kernel.reshape(8, 27), 50))


def test_a_unit_without_weights_stays_at_zero():
    weight = weights(4, 6)
    weight[2] = 0
    values = drawn(weight, 100)
    assert values[:, 2].abs().max() == 0
    assert values.isfinite().all()


@pytest.mark.parametrize(("sigma", "as_variance", "std"), [(4.0, True, 2.0), (4.0, False, 4.0)])
def test_targets_are_the_teachers_soft_outputs_for_values_of_the_hidden_layer(sigma, as_variance, std):
    teacher = of(LeNet5())
    hidden, last = (part for part in teacher.network.modules() if isinstance(part, nn.Linear))
    method = Soft(sigma=sigma, sigma_is_variance=as_variance, mean=0.5, temperature=3.0)
    found = method.sample(20, teacher, rng=Streams(0))
    values = 0.5 + std * correlated(hidden.weight, 20, Streams(0)["targets"])
    wanted = [softmax(row, 3.0) for row in last(F.relu(values)).tolist()]
    torch.testing.assert_close(found.soft, torch.tensor(wanted))
    assert found.temperature == 3.0


def test_without_activation_the_last_layer_gets_the_drawn_values_themselves():
    teacher = of(LeNet5())
    hidden, last = (part for part in teacher.network.modules() if isinstance(part, nn.Linear))
    found = Soft(activate=False).sample(20, teacher, rng=Streams(0))
    values = 2**0.5 * correlated(hidden.weight, 20, Streams(0)["targets"])
    torch.testing.assert_close(found.soft, torch.softmax(last(values) / 20, 1))


def test_the_default_layer_of_a_resnet_is_the_last_convolution():
    teacher = make_teacher()
    convolution, last = teacher.network.stages[2][-1].conv2, teacher.network.classifier
    Soft().check(teacher)
    found = Soft().sample(20, teacher, rng=Streams(0))
    values = 2**0.5 * correlated(convolution.weight, 20, Streams(0)["targets"])
    torch.testing.assert_close(found.soft, torch.softmax(last(F.relu(values)) / 20, 1))
    assert torch.equal(found.soft, Soft(layer="stages.2.0.conv2").sample(20, teacher, rng=Streams(0)).soft)


def test_the_default_layer_of_alexnet_is_fc2_followed_by_its_normalisation():
    teacher = of(AlexNet())
    Soft().check(teacher)
    found, named = (Soft(layer=layer).sample(20, teacher, rng=Streams(0)).soft for layer in (None, "fc2"))
    assert torch.equal(found, named)
    values = 2**0.5 * correlated(teacher.network.fc2.weight, 20, Streams(0)["targets"])
    wanted = teacher.network.classifier(teacher.network.bn2(F.relu(values)))
    torch.testing.assert_close(found, torch.softmax(wanted / 20, 1))
    Soft(layer="fc1").check(teacher)


def test_a_larger_scale_makes_targets_more_confident():
    teacher = make_teacher()
    sure = [Soft(sigma=s).sample(500, teacher, rng=Streams(0)).soft.max(1).values.mean() for s in (0.5, 3.0, 30.0)]
    assert sure[0] < sure[1] < sure[2]


class Skipping(nn.Module):
    """The logits depend on `hidden` and another layer, do not depend on `idle`, and depend on `inner` alone."""

    def __init__(self):
        super().__init__()
        self.hidden, self.idle, self.inner = nn.Linear(256, 6), nn.Linear(256, 6), nn.Linear(6, 6)
        self.skip, self.grouped = nn.Linear(256, 6), nn.Conv2d(6, 6, 1, groups=6)
        self.classifier = nn.Linear(6, NUM_CLASSES)

    def forward(self, images):
        flat = images.flatten(1)
        mixed = self.hidden(flat) + self.skip(flat) + 0 * self.idle(flat)
        mixed = self.grouped(mixed[:, :, None, None]).flatten(1)
        return self.classifier(F.relu(self.inner(mixed)))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("nothing", "no linear layer or convolution"),
        ("classifier", "no linear layer or convolution"),
        ("hidden", "depend on it, or not on it only"),
        ("idle", "depend on it, or not on it only"),
        ("grouped", "a grouped convolution"),
    ],
)
def test_a_layer_that_cannot_be_used_is_refused_with_those_that_can(layer, reason):
    with pytest.raises(InputError, match=rf"{reason}.*is '{layer}'; accepted: inner; or targets balanced"):
        Soft(layer=layer).check(of(Skipping()))
    Soft().check(of(Skipping()))


def test_a_layer_of_another_width_than_the_features_is_refused():
    with pytest.raises(InputError, match="4 units where 16 features are needed"):
        Soft(layer="conv").check(make_teacher())
    with pytest.raises(InputError, match="512 units where 256 features are needed"):
        Soft(layer="fc1", activate=False).check(of(AlexNet()))


def test_soft_targets_without_a_layer_for_them_are_refused():
    with pytest.raises(InputError, match=r"accepted: none of this teacher .*; or targets balanced"):
        Soft().check(of(ConvNet(depth=2, width=8)))


@pytest.mark.parametrize("change", [{"sigma": 0.0}, {"temperature": 0.0}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted: > 0"):
        Soft(**change)


def test_an_inversion_without_support_for_soft_targets_is_refused():
    with pytest.raises(InputError, match="targets soft for inversion dafl"):
        toy_config(targets=Soft(), inversion=small(Dafl))


@pytest.mark.parametrize("kind", [Fast, Cmi, DeepInversion], ids=lambda kind: kind.__name__)
def test_inversions_that_support_soft_targets_compute_the_one_hot_loss_on_them(kind):
    inversion, teacher = small(kind, steps=1), make_teacher()
    soft = Soft(sigma=30.0, temperature=2.0)
    targets = soft.sample(inversion.images_per_round, teacher, rng=Streams(0))
    logits = []

    def recorded(seen, labels):
        logits.append(seen.logits.detach())
        return equal_weights(seen, labels)

    rng = Streams(0)
    made, metrics = inversion.synthesize(
        inversion.init(teacher, rng),
        targets,
        teacher=teacher,
        student=teacher.network,
        guide=Unguided(),
        weigh=recorded,
        rng=rng,
    )
    assert torch.equal(made.labels, targets.labels)
    wanted = class_prior(logits[0], targets.soft, 2.0).mean().item()
    assert metrics["inversion/oh"] == pytest.approx(wanted, rel=1e-5)
    hard = class_prior(logits[0], targets.labels, 2.0).mean().item()
    assert metrics["inversion/oh"] != pytest.approx(hard, rel=1e-3)


def test_autocast_does_not_change_the_drawn_values():
    weight = weights(16, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = drawn(weight, 50)
    assert torch.equal(found, drawn(weight, 50))


def test_a_teacher_without_such_a_layer_is_refused_before_it_is_trained(tmp_path):
    digits = TrialConfig(
        teacher=TeacherConfig(network=ConvNet(depth=2, width=8)), targets=Soft(), inversion=SoftTarget()
    )
    with pytest.raises(InputError, match=r"layer of the soft targets.*none of this teacher"):
        Workshop(tmp_path).check(digits)


def test_a_loaded_trial_continues_bit_for_bit(tmp_path):
    settings, prepared = toy_config(targets=Soft(), inversion=small(SoftTarget)), make_prepared()
    live, store = start(settings, prepared), LocalStore(codec(settings, prepared.teacher), NUM_CLASSES)
    own_images(settings, prepared, live, store)
    checkpoint.save(live, tmp_path / "state")
    loaded = checkpoint.load(start(settings, prepared), tmp_path / "state")
    first, second = (own_images(settings, prepared, each, store)[0] for each in (live, loaded))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
