"""SSD-KD's dynamic replay buffer (Liu et al., CVPR 2024, arXiv 2406.07876): small, with hard samples drawn more often.

According to published summaries: a buffer of fixed size, a tenth of the train set or less, which is updated partially;
priorities from the divergence between teacher and student, updated while the student learns; and importance weights
with an exponent beta that correct the bias of these draws. There is no public code, so the formulas below are our
choice, and so are all fields but `scale` and `beta`.

Letters: N samples held, n samples drawn.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from condkd_ray.core.device import sent
from condkd_ray.core.method import Metrics, NonFiniteError, require
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Samples
from condkd_ray.core.task import BOTH
from condkd_ray.methods.memory.memory import Draw, ReplayMemory, no_ids
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher


@dataclass
class PrioritizedState:
    """Ids kept, oldest first, with the delta and the last importance weight of each, float64; all (N,), on the device.

    A draw reads and writes them on the device, so the CPU does not wait.
    """

    ids: Tensor
    deltas: Tensor
    weights: Tensor

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three on the CPU. Waits for the device, so it must not be called within a step."""
        return self.ids.cpu(), self.deltas.cpu(), self.weights.cpu()


@dataclass(frozen=True, kw_only=True)
class Prioritized(ReplayMemory[PrioritizedState]):
    r"""Draws by P_i = (delta_i + eps)^alpha / \sum_j (delta_j + eps)^alpha, weighted by (N P_i)^-beta.

    After a student step, only the drawn samples get a new delta_i = w_i KL(teacher || student), where w_i is their
    weight (N P_i)^-beta at the previous update, initially 1; a sample drawn more than once gets the mean. New samples
    get the largest delta present, so that each is drawn soon.
    """

    paper = "Liu et al., CVPR 2024"
    ours = ("alpha", "beta", "eps", "divide_by", "evict")
    reads_logits = False
    tasks = BOTH
    name: Literal["prioritized"] = "prioritized"
    scale: float = 0.1
    """Samples kept, as a share of the teacher's train set; the paper uses 0.1 and goes down to 0.01."""
    alpha: float = 1.0
    """Exponent of the priorities; 0 draws uniformly."""
    beta: float = 0.4
    """Exponent of the correction: 0 corrects nothing, 1 the whole bias. The usual start value of prioritised replay,
    constant here."""
    eps: float = 1e-6
    """Constant that is added to each delta, so that samples without divergence are drawn too."""
    divide_by: Literal["mean", "largest", "largest_held"] = "mean"
    """Divisor of a draw's weights: their mean, which keeps the length of the student's steps; their largest, as in
    prioritised replay, or the largest of all in the memory, which both shorten the steps. The mean was chosen on
    validation images (`experiments/LOG.md`)."""
    evict: Literal["lowest", "oldest"] = "lowest"
    """Samples that a new round replaces: those of the lowest delta, or the oldest. Among equal deltas the oldest are
    replaced first, and of a round larger than the memory its last samples are kept."""

    def __post_init__(self) -> None:
        require(self.scale > 0, "prioritized scale", self.scale, "> 0")
        for what in ("alpha", "beta"):
            require(getattr(self, what) >= 0, f"prioritized {what}", getattr(self, what), ">= 0")
        require(self.eps > 0, "prioritized eps", self.eps, "> 0")

    def capacity(self, teacher: Teacher) -> int:
        """Return the number of samples kept."""
        return round(self.scale * teacher.train_size)

    def init(self, teacher: Teacher, rng: Streams) -> PrioritizedState:
        """Return an empty memory. Raises `InputError` if it has no room for one sample of each class."""
        size, least = teacher.train_size, teacher.num_classes
        accepted = f"at least {least / size:.2g}: {least} samples, one per class, of {size} train images"
        require(self.capacity(teacher) >= least, "prioritized scale", self.scale, accepted)
        none = torch.empty(0, dtype=torch.float64, device=rng.device)
        return PrioritizedState(no_ids().to(rng.device), none, none.clone())

    def add(
        self, state: PrioritizedState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams
    ) -> Metrics:
        """Add a round's samples; they replace as many old ones as exceed the capacity.

        Raises `NonFiniteError` if a divergence since the last round was NaN or infinite.
        """
        ids, deltas, weights = state.read()
        if not deltas.isfinite().all():
            raise NonFiniteError("the divergence of teacher and student, kd/gap, is not finite")
        fresh, old = store.append(samples), len(ids)
        highest = deltas.max() if old else torch.ones((), dtype=torch.float64)
        ids = torch.cat([ids, fresh])
        deltas = torch.cat([deltas, highest.expand(len(fresh))])
        weights = torch.cat([weights, torch.ones(len(fresh), dtype=torch.float64)])
        rank = deltas.clone() if self.evict == "lowest" else torch.zeros_like(deltas)
        rank[old:] = torch.inf
        excess = max(0, len(ids) - self.capacity(teacher))
        lost, kept = (rows.sort().values for rows in rank.argsort(stable=True).tensor_split([excess]))
        store.drop(ids[lost])
        state.ids, state.deltas, state.weights = (sent(one[kept], state.ids.device) for one in (ids, deltas, weights))
        return {}

    def draw(self, state: PrioritizedState, store: Store, count: int, *, teacher: Teacher, rng: Streams) -> Draw:
        """Draw by P, with replacement. The ids are on the device, too."""
        chances = self._chances(state.deltas)
        at = torch.rand(count, dtype=torch.float64, generator=rng.host("draw"))
        rows = rows_at(chances, sent(at, chances.device))
        corrections = (len(chances) * chances) ** -self.beta
        # Rows whose chance underflows to 0 are never drawn and need no correction.
        corrections = torch.where(chances > 0, corrections, 0)
        weights = corrections[rows]
        weights = weights / self._divisor(weights, corrections)
        ids = state.ids[rows]
        return Draw(store.gather(ids), ids, weights.float())

    def live(self, state: PrioritizedState) -> Tensor:
        """Return all kept ids."""
        return state.ids

    def feedback(self, state: PrioritizedState, ids: Tensor, priority: Tensor) -> None:
        """Update deltas and weights of the drawn samples `ids` (n,) with their divergences `priority` (n,).

        A divergence that is NaN or infinite makes its sample's delta NaN for good, which `add` detects.
        """
        if not len(ids):
            return
        rows = torch.searchsorted(state.ids, ids)
        # Over all pairs, because a scatter-add on a GPU sums in no fixed order.
        same = rows[:, None] == rows
        gaps = torch.where(same, priority.detach().double(), 0).sum(1) / same.sum(1)
        non_finite = 0 * state.deltas[rows]
        state.deltas = state.deltas.index_copy(0, rows, state.weights[rows] * gaps + non_finite)
        chances = self._chances(state.deltas)
        state.weights = state.weights.index_copy(0, rows, (len(chances) * chances[rows]) ** -self.beta)

    def _divisor(self, drawn: Tensor, held: Tensor) -> Tensor:
        if self.divide_by == "mean":
            return drawn.mean()
        return (drawn if self.divide_by == "largest" else held).max()

    def _chances(self, deltas: Tensor) -> Tensor:
        """Return P (N,) of deltas (N,). Masses are scaled to at most 1, against over- and underflow for any alpha."""
        masses = deltas.abs() + self.eps
        masses = (masses / masses.max()) ** self.alpha
        return masses / masses.sum()


def rows_at(chances: Tensor, at: Tensor) -> Tensor:
    """Return the row whose interval contains each of `at` (n,) in [0, 1); interval lengths are the `chances` (N,).

    Lengths are counted in units of 2^-53: sums of integers do not depend on a GPU's order of summation.
    """
    edges = (chances * 2.0**53).long().cumsum(0)
    return torch.searchsorted(edges, (at * edges[-1]).long(), right=True).clamp(max=len(edges) - 1)
