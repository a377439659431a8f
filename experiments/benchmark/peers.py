"""Our CPU time compared with three public code bases, and a round with its convolutions; one function per figure.

Both sides run in this process, on one thread, in turns.
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
"""Number of measurements; CMI, whose steps take longest, has fewer."""
PACKAGES = ("torch", "torchvision", "numpy", "kornia")
"""Packages whose versions affect the figures; the peers augment with kornia."""


def fast_resnet(checkout: Path) -> Iterator[Measured]:
    """Fast on small networks."""
    network = ResNet(depth=8, width=16)
    yield from _fast(checkout, network, network, 128, "resnet-8-16 to resnet-8-16, batch 128")


def fast_wrn(checkout: Path) -> Iterator[Measured]:
    """Fast on the networks of its paper."""
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
    compared = f"`fast`, {what}: {PEERS['fast'].repository} / ours"
    yield Measured(f"step of synthesis, {compared}", [they.synthesis / we.synthesis for they, we, _ in turns], "x")
    what_student = f"step of the student, its batch drawn and augmented, {compared}"
    yield Measured(what_student, [they.student / we.student for they, we, _ in turns], "x")
    what_round = f"round of {STEPS} steps of synthesis and {STUDENT_STEPS} of the student, {compared}"
    why = "Both use the same library for convolutions. The next row is the limit that our convolutions set."
    yield Measured(what_round, [they.whole / we.whole for they, we, _ in turns], "x", ">=", 2.2, why)
    what_limit = f"the same round: {PEERS['fast'].repository} / our convolutions alone, which is the limit"
    yield Measured(what_limit, [they.whole / alone for they, _, alone in turns], "x")
    what_overhead = f"our round, `fast`, {what} / its convolutions alone"
    why = "The rest is BN, activations, linear layers, augmentation and optimisers."
    yield Measured(what_overhead, [we.whole / alone for _, we, alone in turns], "x", "<=", 1.25, why)


def cmi(checkout: Path) -> Iterator[Measured]:
    """CMI with a full bank; views are compared at the inputs of all BN layers, as CMI does for all but ResNet-34.

    The bank has the official 40960 rows, filled with the same random features on both sides; a step draws 4096 of them.
    """
    network, batch = ResNet(depth=8, width=16), 64
    ours = Ours(network, network, Cmi(steps=STEPS, batch=batch, layers="all"))
    with imported("cmi", checkout) as package, _folder() as folder:
        theirs = cmi_peer(package, ours, folder)
        values = _by_turns(theirs.images, ours.images, FEWER)
    what = f"step of synthesis, `cmi` with a full bank, resnet-8-16, batch {batch}: {PEERS['cmi'].repository} / ours"
    yield Measured(what, values, "x")


def nayer(checkout: Path) -> Iterator[Measured]:
    """NAYER in its second epoch, with the adversarial term and without re-initialising the generator."""
    network, batch = ResNet(depth=8, width=16), 60
    # Our side does not re-initialise the generator either.
    ours = Ours(network, network, Nayer(steps=STEPS, batch=batch, life=NEVER))
    with imported("nayer", checkout) as package, _folder() as folder:
        theirs = nayer_peer(package, ours, folder)
        values = _by_turns(theirs.images, ours.images, TURNS)
    what = f"step of synthesis, `nayer`, resnet-8-16, batch {batch}: {PEERS['nayer'].repository} / ours"
    yield Measured(what, values, "x")


def _by_turns(theirs: Callable[[], float], ours: Callable[[], float], count: int) -> list[float]:
    """Return the ratio of their time to ours, `count` times, after one warm-up."""
    return [theirs() / ours() for _ in range(count + 1)][1:]


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a temporary folder for a peer's images."""
    with TemporaryDirectory(prefix="condkd-benchmark-") as folder:
        yield Path(folder)


FIGURES: dict[PeerFigure, tuple[Name, Callable[[Path], Iterator[Measured]]]] = {
    "fast_resnet": ("fast", fast_resnet),
    "fast_wrn": ("fast", fast_wrn),
    "cmi": ("cmi", cmi),
    "nayer": ("nayer", nayer),
}
"""Figures in the order in which they are measured, each with the name of the checkout that it needs."""
