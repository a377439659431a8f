"""Our CPU time beside that of three public code bases, a figure a function; and a round beside its own convolutions.

Both sides run in this process, on one thread, by turns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark.checkouts import PEERS, Name, imported
from benchmark.convolutions import Convolutions
from benchmark.names import PeerFigure
from benchmark.rows import Measured
from benchmark.sides import NEVER, STEPS, STUDENT_STEPS, Ours, cmi_peer, fast_peer, nayer_peer
from condkd_ray.methods.inversion import Cmi, Fast, Nayer
from condkd_ray.models import AnyNetwork, ResNet, Wrn

TURNS, FEWER = 5, 3
"""Measurements; and of CMI, whose step takes longest."""
PACKAGES = ("torch", "torchvision", "numpy", "kornia")
"""Whose versions shape what is measured; the peers augment with kornia."""


def fast_resnet(checkout: Path) -> Iterator[Measured]:
    """Fast, on small networks."""
    network = ResNet(depth=8, width=16)
    yield from _fast(checkout, network, network, 128, "resnet-8-16 to resnet-8-16, batch 128")


def fast_wrn(checkout: Path) -> Iterator[Measured]:
    """Fast, on the networks of its paper."""
    teacher, student = Wrn(depth=40, width=2), Wrn(depth=16, width=1)
    yield from _fast(checkout, teacher, student, 64, "wrn-40-2 to wrn-16-1, batch 64")


def _fast(checkout: Path, teacher: AnyNetwork, student: AnyNetwork, batch: int, what: str) -> Iterator[Measured]:
    ours = Ours(teacher, student, Fast(steps=STEPS, batch=batch))
    with imported("fast", checkout) as package, _folder() as folder:
        theirs = fast_peer(package, ours, folder)
        theirs.round()
        ours.round()
        with Convolutions() as convolutions:
            ours.round()
        turns = [(theirs.round(), ours.round(), convolutions.seconds()) for _ in range(TURNS)]
    beside = f"`fast`, {what}: {PEERS['fast'].repository} / ours"
    yield Measured(f"step of synthesis, {beside}", [they.synthesis / we.synthesis for they, we, _ in turns], "x")
    told = f"step of the student, its batch drawn and augmented, {beside}"
    yield Measured(told, [they.student / we.student for they, we, _ in turns], "x")
    told = f"round of {STEPS} steps of synthesis and {STUDENT_STEPS} of the student, {beside}"
    why = "Our convolutions alone, of the same library as theirs, leave no more than the next row says."
    yield Measured(told, [they.whole / we.whole for they, we, _ in turns], "x", ">=", 2.2, why)
    told = f"the same round: {PEERS['fast'].repository} / our convolutions alone, which is the limit"
    yield Measured(told, [they.whole / alone for they, _, alone in turns], "x")
    told = f"our round, `fast`, {what} / its convolutions alone"
    why = "BN, activations, linear layers, augmentation and optimisers stand beside them."
    yield Measured(told, [we.whole / alone for _, we, alone in turns], "x", "<=", 1.25, why)


def cmi(checkout: Path) -> Iterator[Measured]:
    """CMI with a full bank; views are compared at the inputs of all BN layers, as its program does but for ResNet-34.

    The bank has the official 40960 rows of random features, the same on both sides; 4096 join each step.
    """
    network, batch = ResNet(depth=8, width=16), 64
    ours = Ours(network, network, Cmi(steps=STEPS, batch=batch, layers="all"))
    with imported("cmi", checkout) as package, _folder() as folder:
        theirs = cmi_peer(package, ours, folder)
        values = _by_turns(theirs.images, ours.images, FEWER)
    told = f"step of synthesis, `cmi` with a full bank, resnet-8-16, batch {batch}: {PEERS['cmi'].repository} / ours"
    yield Measured(told, values, "x")


def nayer(checkout: Path) -> Iterator[Measured]:
    """NAYER in its second epoch, where the student competes and no generator is drawn."""
    network, batch = ResNet(depth=8, width=16), 60
    # Ours neither draws one as rounds go by.
    ours = Ours(network, network, Nayer(steps=STEPS, batch=batch, life=NEVER))
    with imported("nayer", checkout) as package, _folder() as folder:
        theirs = nayer_peer(package, ours, folder)
        values = _by_turns(theirs.images, ours.images, TURNS)
    told = f"step of synthesis, `nayer`, resnet-8-16, batch {batch}: {PEERS['nayer'].repository} / ours"
    yield Measured(told, values, "x")


def _by_turns(theirs: Callable[[], float], ours: Callable[[], float], count: int) -> list[float]:
    """Theirs over ours, `count` times, after one that is not counted."""
    return [theirs() / ours() for _ in range(count + 1)][1:]


@contextmanager
def _folder() -> Iterator[Path]:
    """Where a peer's images lie; gone afterwards."""
    with TemporaryDirectory(prefix="condkd-benchmark-") as folder:
        yield Path(folder)


FIGURES: dict[PeerFigure, tuple[Name, Callable[[Path], Iterator[Measured]]]] = {
    "fast_resnet": ("fast", fast_resnet),
    "fast_wrn": ("fast", fast_wrn),
    "cmi": ("cmi", cmi),
    "nayer": ("nayer", nayer),
}
"""What is measured, in this order, and with whose checkout."""
