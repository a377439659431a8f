import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import ConstantPenalties, make_student, small, synthesize
from toy import NUM_CLASSES, by_layer, make_teacher, wrap

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.data.augment import resized_crop, shift_flip
from condkd_ray.methods.inversion import Cmi
from condkd_ray.methods.targets import Balanced
from condkd_ray.models import ResNet34
from condkd_ray.models.generator import Generator
from condkd_ray.models.teacher import Teacher


def project(head, features):
    features = features @ head[0].weight.T + head[0].bias
    return F.normalize(features.relu() @ head[2].weight.T + head[2].bias)


def contrast(cmi, head, local, whole, cached):
    """Return the sum of the mean losses over the batch and over cached rows."""
    count = len(local)
    local, whole = (torch.cat([now, *then]) for now, then in zip((local, whole), cached, strict=True))
    alike = project(head, local) @ project(head, whole).detach().T / cmi.cr_temperature
    losses = -alike.log_softmax(1).diagonal()
    return losses[:count].mean() + (losses[count:].mean() if len(losses) > count else 0)


def means(cmi, teacher, images):
    """Return the compared features: channel means of the inputs of the teacher's three stages or of all BN layers."""
    if cmi.layers == "all":
        return teacher.observe(images, input_means=tuple(teacher.bn_inputs)).input_means
    network = teacher.network
    entering = [network.bn(network.conv(images)).relu()]
    for stage in network.stages[:-1]:
        entering.append(stage(entering[-1]))
    return torch.cat([maps.mean((2, 3)) for maps in entering], 1)


def by_hand(cmi, number, head, optimizer, bank, rng, teacher, student):
    """Run one round of CMI in plain code. Return the loss, the images and the features of each step."""
    targets = Balanced().sample(cmi.batch, teacher, rng=rng)
    with rng.forked(f"init/generator/{number}"):
        generator = Generator(cmi.latent, cmi.width, teacher.image_shape, init="normal")
    generator = generator.to(memory_format=torch.channels_last)
    latents = torch.randn(cmi.batch, cmi.latent, generator=rng["latents"]).requires_grad_()
    own = torch.optim.Adam([{"params": generator.parameters()}, {"params": [latents]}], cmi.lr, betas=(0.5, 0.999))
    rounds = []
    for _ in range(cmi.steps):
        images = (generator(latents) - teacher.mean[0]) / teacher.std[0]
        shifted = shift_flip(images, rng=rng["augment/inversion"], share=1 / 8, flip=False, black=-1.0)
        part = resized_crop(images, rng=rng["augment/inversion"], flip=False)
        seen, whole, local = teacher.observe(shifted), means(cmi, teacher, shifted), means(cmi, teacher, part)
        loss = cmi.oh_weight * F.cross_entropy(seen.logits, targets.labels)
        pairs = zip(by_layer(seen.bn, teacher), by_layer(teacher.bn[0], teacher), strict=True)
        for (mean, var), (running_mean, running_var) in pairs:
            loss = loss + cmi.bn_weight * ((running_mean - mean).norm() + (running_var - var).norm())
        logits = student(shifted)
        kl = (seen.logits.softmax(1) * (seen.logits.log_softmax(1) - logits.log_softmax(1))).sum(1)
        loss = loss - cmi.adv_weight * (kl * (logits.argmax(1) == seen.logits.argmax(1))).mean()
        cached = ([], [])
        if bank is not None:
            rows = torch.randperm(len(bank), generator=rng["negatives"])[: cmi.negatives]
            cached = tuple([half] for half in bank[rows].chunk(2, 1))
        loss = loss + cmi.cr_weight * contrast(cmi, head, local, whole, cached)
        own.zero_grad()
        optimizer.zero_grad()
        loss.backward()
        own.step()
        optimizer.step()
        rounds.append((loss.item(), images.detach(), torch.cat([local, whole], 1).detach()))
    return rounds


@pytest.mark.parametrize("layers", ["stages", "all"])
def test_two_rounds_equal_plain_code(layers):
    cmi, teacher, student = small(Cmi, steps=3, layers=layers), make_teacher(), make_student()
    rng, own = Streams(0), Streams(0)
    state, other = cmi.init(teacher, rng), cmi.init(teacher, own)
    bank = None
    for number in (1, 2):
        made, metrics = synthesize(cmi, state, rng=rng, teacher=teacher, student=student)
        rounds = by_hand(cmi, number, other.head, other.optimizer, bank, own, teacher, student)
        assert metrics["inversion/loss"] == pytest.approx(sum(loss for loss, *_ in rounds) / 3, rel=1e-3)
        _, images, features = min(rounds, key=lambda step: step[0])
        torch.testing.assert_close(made.images, images, rtol=1e-2, atol=1e-2)
        bank = features if bank is None else torch.cat([bank, features])
        bank = bank[-cmi.bank :]
        torch.testing.assert_close(state.bank, bank, rtol=1e-2, atol=1e-2)
        for found, wanted in zip(state.head.parameters(), other.head.parameters(), strict=True):
            # Adam's first step has the size of its rate even for tiny gradients, whose sign may be due to rounding.
            assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-4).double().mean() > 0.99


@pytest.mark.parametrize(("layers", "channels"), [("stages", 4 + 4 + 8), ("all", 3 * 4 + 3 * 8 + 3 * 16)])
def test_the_bank_keeps_the_latest_rows(layers, channels):
    cmi, teacher, rng = small(Cmi, steps=1, batch=8, bank=12, layers=layers), make_teacher(), Streams(0)
    state, seen = cmi.init(teacher, rng), []
    for rows in (8, 12, 12):
        synthesize(cmi, state, rng=rng, teacher=teacher)
        assert state.bank.shape == (rows, 2 * channels)
        assert not state.bank.requires_grad
        seen.append(state.bank[-8:].clone())
    assert torch.equal(state.bank, torch.cat(seen)[-12:])


@pytest.mark.parametrize("best", [0, 1, 2])
def test_images_and_features_of_the_lowest_loss_are_kept(best):
    guide = ConstantPenalties(*[-1e6 if step == best else 0.0 for step in range(3)])
    cmi, teacher, rng = small(Cmi, shift=0.0), make_teacher(), Streams(0)
    state = cmi.init(teacher, rng)
    made, _ = synthesize(cmi, state, rng=rng, teacher=teacher, guide=guide)
    assert torch.equal(made.images, guide.penalty_calls[best])
    whole = means(cmi, teacher, made.images)
    torch.testing.assert_close(state.bank.chunk(2, 1)[1], whole, rtol=1e-4, atol=1e-4)


def test_each_round_has_a_new_generator_and_all_share_one_head():
    cmi, teacher, rng, firsts = small(Cmi, steps=1, lr=0.0), make_teacher(), Streams(0), []
    state = cmi.init(teacher, rng)
    head = [p.clone() for p in state.head.parameters()]
    for _ in range(2):
        guide = ConstantPenalties(0.0)
        rng["latents"].manual_seed(5)
        synthesize(cmi, state, rng=rng, teacher=teacher, guide=guide)
        firsts.append(guide.penalty_calls[0])
    assert not torch.allclose(*firsts)
    assert all(torch.equal(p, q) for p, q in zip(state.head.parameters(), head, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_trained_head_separates_views_better_than_an_untrained_one(seed):
    cmi, teacher, found = small(Cmi, steps=20, cr_weight=1.0, head=32), make_teacher(), []
    for rate in (cmi.lr, 0.0):
        rng = Streams(seed)
        state = cmi.init(teacher, rng)
        state.optimizer.param_groups[0]["lr"] = rate
        _, metrics = synthesize(cmi, state, rng=rng, teacher=teacher)
        found.append(metrics["inversion/cr"])
    assert found[0] < found[1]


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"head": 0}, {"negatives": 0}, {"cr_temperature": 0.0}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        Cmi(**change)


def test_more_negatives_than_the_bank_holds_are_refused():
    with pytest.raises(InputError, match="negatives is 9; accepted: at most 8, the rows of the bank"):
        Cmi(negatives=9, bank=8)


def test_layers_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="inversion layers is 'blocks'; accepted: stages, all"):
        Cmi(layers="blocks")


def test_a_teacher_without_a_stage_on_a_feature_map_is_refused():
    """The teacher's only BN layer has the image as input."""
    flat = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(64, NUM_CLASSES))
    with pytest.raises(InputError, match=r"stages that read a feature map is 0; accepted: 1 or more.* layers all"):
        Cmi().init(wrap(flat), Streams(0))


@pytest.fixture(scope="module")
def resnet34():
    module = ResNet34().build((3, 32, 32), 10)
    return Teacher.from_module(module, num_classes=10, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3)


def test_a_bank_that_does_not_fit_is_refused_with_its_size(resnet34):
    """Half of 1e9 free bytes can be used, because adding rows copies the bank."""
    with pytest.raises(InputError) as caught:
        Cmi(layers="all").check_memory(resnet34, 10**9, 1000)
    assert str(caught.value) == (
        "memory of inversion bank, 40960 rows of 2 x 8512 values is '2.79 GB'; accepted: at most 0.5 GB, half of the "
        "free memory, as adding rows copies the bank: bank 7342 or layers stages"
    )
    Cmi(layers="all", bank=7342).check_memory(resnet34, 10**9, 1000)
    with pytest.raises(InputError, match="7343 rows"):
        Cmi(layers="all", bank=7343).check_memory(resnet34, 10**9, 1000)
    Cmi().check_memory(resnet34, 10**9, 1000)


def test_only_the_rows_that_a_trial_produces_count(resnet34):
    Cmi(layers="all").check_memory(resnet34, 10**9, 57)
    with pytest.raises(InputError, match="7424 rows"):
        Cmi(layers="all").check_memory(resnet34, 10**9, 58)
