"""The two sides of a comparison: a trial of this package, and a peer's synthesizer and student, doing the same work.

Both have the same networks and weights, sizes of latents and batches, numbers of steps, and learning rates. Everything
else is each side's own code, in the memory format of its own program: channels last here, contiguous in the peers.
"""

import copy
import io
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import transforms

from benchmark.checkouts import PEERS, Name
from condkd_ray.core.method import require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import unseen
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import AnyInversion
from condkd_ray.methods.inversion.nayer import NoisyLayers, occurrences
from condkd_ray.models import AnyNetwork
from condkd_ray.models.generator import Generator
from condkd_ray.models.network import label
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.loop import own_images, run_round, start
from condkd_ray.trial.run import local_store

SHAPE, CLASSES = (3, 32, 32), 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Mean and standard deviation of CIFAR-10."""
STEPS, STUDENT_STEPS = 10, 20
"""Steps of synthesis and of the student in a round."""
NEVER = 10**6
"""A number of rounds that no run reaches."""


class Spent(NamedTuple):
    """CPU seconds of a step of synthesis, of a student's step, and of a whole round."""

    synthesis: float
    student: float
    whole: float


class Ours:
    """A trial of this package, without test images and so without evaluation."""

    def __init__(self, teacher: AnyNetwork, student: AnyNetwork, inversion: AnyInversion) -> None:
        batch = inversion.images_per_round
        self.config = TrialConfig(
            student=student,
            inversion=inversion,
            # Without warm-up, as in the peers.
            distiller=Distiller(steps=STUDENT_STEPS, batch=batch, warm_up=0.0),
            rounds=NEVER,
            evaluate_every=NEVER,
        )
        no_images = unseen(torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
        self.network, self.teacher = teacher, _teacher(teacher)
        self.prepared = Prepared(self.teacher, test=None, val=None, condensed=None, proxy=no_images)
        self.state = start(self.config, self.prepared)
        self.store = local_store(self.config, self.prepared, None)
        self.steps: int = getattr(inversion, "steps")  # noqa: B009

    @property
    def student(self) -> nn.Module:
        """The student's network."""
        return self.state.distiller.student

    @property
    def inversion(self) -> Any:
        """State of the inversion."""
        return self.state.production.inversion  # type: ignore[union-attr]

    def images(self) -> float:
        """Return the CPU seconds of a step of synthesis."""
        return _cpu(partial(own_images, self.config, self.prepared, self.state, self.store)) / self.steps

    def round(self) -> Spent:
        """Run a whole round as a trial does; the student's time includes about a millisecond for the memory."""
        spent: dict[str, float] = {}

        def source(*given: Any) -> Any:
            begun = time.process_time()
            made = own_images(*given)
            spent["synthesis"] = time.process_time() - begun
            return made

        metrics = run_round(self.config, self.prepared, self.state, self.store, source)
        whole = metrics["time/cpu_seconds"]
        student = (whole - spent["synthesis"]) / self.config.distiller.steps
        return Spent(spent["synthesis"] / self.steps, student, whole)


class Theirs:
    """A peer: a synthesizer that takes `steps` steps, and `learn`, the student's part of a round."""

    def __init__(self, synthesizer: Any, steps: int, learn: Callable[[], object] = lambda: None) -> None:
        self._synthesizer, self._steps, self._learn = synthesizer, steps, learn
        self._ended, add = 0.0, synthesizer.data_pool.add

        def timed_add(images: Tensor) -> None:
            self._ended = time.process_time()
            add(images)

        # The peer adds its images to the pool after its last step; writing the PNGs counts only for the whole round.
        synthesizer.data_pool.add = timed_add

    def images(self) -> float:
        """Return the CPU seconds of a step of synthesis."""
        begun = time.process_time()
        # NAYER prints the loss terms of each step.
        with redirect_stdout(io.StringIO()):
            self._synthesizer.synthesize()
        return (self._ended - begun) / self._steps

    def round(self) -> Spent:
        """Run a whole round: synthesis, writing its images as PNGs, and the student's steps on images read back."""
        begun = time.process_time()
        step = self.images()
        middle = time.process_time()
        self._learn()
        ended = time.process_time()
        return Spent(step, (ended - middle) / STUDENT_STEPS, ended - begun)


def fast_peer(package: ModuleType, ours: Ours, folder: Path) -> Theirs:
    """Return Fast's side: its synthesizer with the settings of its scripts, and its program's function `train`.

    Raises `InputError` if its networks do not compute the same as ours; so do the other functions.
    """
    inversion: Any = ours.config.inversion
    teacher, student = _networks("fast", package, ours)
    generator = package.models.generator.Generator(nz=inversion.latent, ngf=inversion.width // 2, img_size=32, nc=3)
    _load(generator, ours.inversion.generator)
    latents = torch.randn(inversion.batch, inversion.latent)
    images = _run(generator, latents)
    check_same("fast", "images of the generator", images, _run(ours.inversion.generator, latents))
    synthesizer = package.synthesis.FastMetaSynthesizer(
        *(teacher, student, generator),
        nz=inversion.latent,
        iterations=inversion.steps,
        lr_g=inversion.lr,
        lr_z=inversion.lr_latent,
        warmup=0,
        bn_mmt=inversion.bn_momentum,
        is_maml=1,
        **_settings(package, ours, folder),
    )
    distiller = ours.config.distiller
    optimizer = torch.optim.SGD(student.parameters(), distiller.lr, weight_decay=distiller.weight_decay, momentum=0.9)
    criterion = package.criterions.KLDiv(T=20)
    flags = Namespace(kd_steps=distiller.steps, method="fast_meta", gpu=None, fp16=False, print_freq=0)
    flags.autocast = package.utils.dummy_ctx
    # The synthesizer's hooks stay on the teacher, so that Fast's `train` computes BN statistics too.
    train = import_module("datafree_kd").train
    learn = partial(train, synthesizer, [student, teacher], criterion, optimizer, flags)
    return Theirs(synthesizer, inversion.steps, learn)


def cmi_peer(package: ModuleType, ours: Ours, folder: Path) -> Theirs:
    """Return CMI's side: its synthesizer, with a bank that counts as full; our bank gets the same rows."""
    inversion: Any = ours.config.inversion
    teacher, student = _networks("cmi", package, ours)
    generator = package.models.generator.Generator(nz=inversion.latent, ngf=inversion.width // 2, img_size=32, nc=3)
    own = Generator(inversion.latent, inversion.width, SHAPE, init="normal").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _load(generator, own)
    latents = torch.randn(inversion.batch, inversion.latent)
    images = _run(generator, latents)
    check_same("cmi", "images of the generator", images, _run(own, latents))
    with redirect_stdout(io.StringIO()):
        synthesizer = package.synthesis.CMISynthesizer(
            *(teacher, student, generator),
            nz=inversion.latent,
            bank_size=inversion.bank,
            n_neg=inversion.negatives,
            head_dim=inversion.head,
            iterations=inversion.steps,
            lr_g=inversion.lr,
            cr=inversion.cr_weight,
            cr_T=inversion.cr_temperature,
            **_settings(package, ours, folder),
        )
    bank = synthesizer.mem_bank
    bank.n_updates = bank.max_size + 1
    ours.inversion.bank = bank.data.clone()
    return Theirs(synthesizer, inversion.steps)


def nayer_peer(package: ModuleType, ours: Ours, folder: Path) -> Theirs:
    """Return NAYER's side: its synthesizer, with our class embeddings."""
    inversion: Any = ours.config.inversion
    teacher, student = _networks("nayer", package, ours)
    own, embeddings = ours.inversion.generator, ours.inversion.embeddings
    generator = package.models.generator.NLGenerator(
        ngf=inversion.width // 2,
        nl=CLASSES,
        label_emb=embeddings,
        le_emb_size=inversion.latent,
        le_size=embeddings.shape[1],
        sbz=inversion.batch,
    )
    _load(generator, own, but="le1.")
    labels = torch.arange(inversion.batch) % CLASSES
    places, count = occurrences(labels, CLASSES)
    noisy = NoisyLayers(torch.randn(count, inversion.latent, embeddings.shape[1]), torch.zeros(count, inversion.latent))
    with torch.no_grad():
        for layer, weight, bias in zip(generator.le1, *noisy, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    images = _run(generator, labels)
    check_same("nayer", "images of the generator", images, _run(own, embeddings, noisy, labels, places))
    synthesizer = package.synthesis.NAYER(
        *(teacher, student, generator),
        g_steps=inversion.steps,
        lr_g=inversion.lr,
        warmup=0,
        bn_mmt=inversion.bn_momentum,
        g_life=NEVER,
        g_loops=1,
        **_settings(package, ours, folder),
    )
    # In epoch 0 it would re-initialise its generator.
    synthesizer.ep = 1
    return Theirs(synthesizer, inversion.steps)


def _settings(package: ModuleType, ours: Ours, folder: Path) -> dict[str, Any]:
    """Return the settings that all synthesizers have."""
    inversion: Any = ours.config.inversion
    # As in the peers' `registry.get_dataset`, which would read the data set itself.
    augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    augmented += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return {
        "num_classes": CLASSES,
        "img_size": SHAPE,
        "synthesis_batch_size": inversion.batch,
        "sample_batch_size": ours.config.distiller.batch,
        "adv": inversion.adv_weight,
        "bn": inversion.bn_weight,
        "oh": inversion.oh_weight,
        "save_dir": str(folder / "images"),
        "transform": transforms.Compose(augmented),
        "normalizer": package.utils.Normalizer(MEAN, STD),
        "device": "cpu",
    }


NETWORKS = {"resnet-8-16": "resnet_tiny.resnet8", "wrn-40-2": "wresnet.wrn_40_2", "wrn-16-1": "wresnet.wrn_16_1"}
"""Functions in the peers' `models.classifiers` that build a network, by our label of it."""


def _networks(name: Name, package: ModuleType, ours: Ours) -> tuple[nn.Module, nn.Module]:
    """Return a peer's teacher and student, with our weights.

    As in the peers' programs they are contiguous, and the teacher is not frozen: a step of synthesis computes gradients
    of the weights of both networks.
    """
    made = []
    for network, module in ((ours.network, ours.teacher.network), (ours.config.student, ours.student)):
        folder, function = NETWORKS[label(network)].split(".")
        theirs = getattr(getattr(package.models.classifiers, folder), function)(num_classes=CLASSES)
        _load(theirs, module)
        made.append(theirs)
    images = torch.randn(16, *SHAPE)
    with torch.no_grad():
        check_same(name, "logits of the teacher", made[0].eval()(images), ours.teacher.logits(images))
        check_same(name, "logits of the student", made[1].eval()(images), ours.student.eval()(images))
    return made[0], made[1]


def _teacher(network: AnyNetwork) -> Teacher:
    """Return an untrained teacher whose BN layers have run on noise, so that logits have a trained teacher's size."""
    rng = Streams(0)
    with rng.forked("init/teacher"):
        module = network.build(SHAPE, CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            for _ in range(20):
                module.train()(torch.randn(32, *SHAPE))
    return Teacher(module, num_classes=CLASSES, image_shape=SHAPE, mean=MEAN, std=STD, train_size=50_000, flip_ok=True)


def _load(theirs: nn.Module, ours: nn.Module, but: str = "-") -> None:
    """Copy our weights into a peer's network, which has the same tensors in the same order under other names."""
    names = [name for name in theirs.state_dict() if not name.startswith(but)]
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)), strict=False)


@torch.no_grad()
def _run(network: nn.Module, *given: Any) -> Tensor:
    """Return the output of a copy of the network in train mode; the network itself does not change."""
    return copy.deepcopy(network).train()(*given)


def check_same(name: Name, what: str, theirs: Tensor, ours: Tensor) -> None:
    """Raise `InputError` unless both are equal up to rounding, so that both sides do the same computation."""
    same = theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3)
    away = (theirs - ours).abs().max().item() if theirs.shape == ours.shape else theirs.shape
    require(same, f"distance of --{name}'s {what} from ours", away, f"0: commit {PEERS[name].commit}")


def _cpu(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun
