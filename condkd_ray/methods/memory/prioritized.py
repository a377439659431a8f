r"""SSD-KD's dynamic replay buffer (Liu et al., CVPR 2024, arXiv 2406.07876): small, and hard samples are drawn more.

Read (`methods.md` 4.2, 4.3): a buffer of fixed size, a tenth of the train set or less, updated partially; priorities
from what teacher and student disagree on, kept up to date while the student learns; importance weights with the
exponent beta that correct the bias of such draws. No code is public and the formulas below are recalled, not read:
they are our choice, and so are all fields but the meaning of `scale` and `beta`.

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
from condkd_ray.methods.memory.memory import Draw, ReplayMemory, no_ids
from condkd_ray.methods.memory.store import Store
from condkd_ray.models.teacher import Teacher


@dataclass
class PrioritizedState:
    """Ids kept, oldest first; of each its delta and its last importance weight, float64. All (N,), on the device.

    There they are drawn from and written to: the host waits for neither.
    """

    ids: Tensor
    deltas: Tensor
    weights: Tensor

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three on the CPU. Waits for the device: not within a step."""
        return self.ids.cpu(), self.deltas.cpu(), self.weights.cpu()


@dataclass(frozen=True, kw_only=True)
class Prioritized(ReplayMemory[PrioritizedState]):
    r"""Draws by P_i = (delta_i + eps)^alpha / \sum_j (delta_j + eps)^alpha, weighted by (N P_i)^-beta.

    After a student step the drawn samples alone get delta_i = w_i KL(teacher || student), where w_i is their weight
    (N P_i)^-beta of the last such time, at first 1; drawn more than once, they get the mean. New samples come with the
    largest delta there is, so that each is seen soon.
    """

    paper = "Liu et al., CVPR 2024"
    ours = ("alpha", "beta", "eps", "divide_by", "evict")
    reads_logits = False
    name: Literal["prioritized"] = "prioritized"
    scale: float = 0.1
    """Samples kept, as a share of the teacher's train set; the paper has 0.1 and goes down to 0.01."""
    alpha: float = 1.0
    """0 draws uniformly."""
    beta: float = 0.4
    """0 corrects nothing, 1 all of the bias. Prioritised replay's usual start, here constant."""
    eps: float = 1e-6
    """What even a sample without divergence has for a mass."""
    divide_by: Literal["mean", "largest", "largest_held"] = "mean"
    """What a draw's weights are divided by: their mean, which leaves the length of the student's steps alone; their
    largest, as prioritised replay does, or that of all in the memory, which shorten them. The mean was chosen on
    validation images (`experiments/LOG.md`)."""
    evict: Literal["lowest", "oldest"] = "lowest"
    """Which samples make room for a round's: those of the lowest delta, or of the highest age. Among equals the oldest
    go, and of a round larger than the memory its last samples stay."""

    def __post_init__(self) -> None:
        require(self.scale > 0, "prioritized scale", self.scale, "> 0")
        for what in ("alpha", "beta"):
            require(getattr(self, what) >= 0, f"prioritized {what}", getattr(self, what), ">= 0")
        require(self.eps > 0, "prioritized eps", self.eps, "> 0")

    def capacity(self, teacher: Teacher) -> int:
        """Samples kept."""
        return round(self.scale * teacher.train_size)

    def init(self, teacher: Teacher, rng: Streams) -> PrioritizedState:
        """Empty. Raises `InputError` where there is not room for one sample of each class."""
        size, least = teacher.train_size, teacher.num_classes
        accepted = f"at least {least / size:.2g}: {least} samples, one a class, where the train set has {size}"
        require(self.capacity(teacher) >= least, "prioritized scale", self.scale, accepted)
        none = torch.empty(0, dtype=torch.float64, device=rng.device)
        return PrioritizedState(no_ids().to(rng.device), none, none.clone())

    def add(
        self, state: PrioritizedState, store: Store, samples: Samples, *, teacher: Teacher, rng: Streams
    ) -> Metrics:
        """A round's samples in the place of as many old ones as there is no room for.

        Raises `NonFiniteError` where a divergence since the last round was NaN or infinite.
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
        """By P, with replacement. Ids lie on the device, too."""
        chances = self._chances(state.deltas)
        at = torch.rand(count, dtype=torch.float64, generator=rng.host("draw"))
        rows = _rows_at(chances, sent(at, chances.device))
        corrections = (len(chances) * chances) ** -self.beta
        # Rows that are never drawn, as their chance is too small for a number, correct nothing.
        corrections = torch.where(chances > 0, corrections, 0)
        weights = corrections[rows]
        weights = weights / self._divisor(weights, corrections)
        ids = state.ids[rows]
        return Draw(store.gather(ids), ids, weights.float())

    def live(self, state: PrioritizedState) -> Tensor:
        """All kept ids."""
        return state.ids

    def feedback(self, state: PrioritizedState, ids: Tensor, priority: Tensor) -> None:
        """Bring deltas and weights of the drawn samples `ids` (n,) up to date by their divergences (n,).

        One that is NaN or infinite makes its sample's delta NaN for good, which `add` finds.
        """
        if not len(ids):
            return
        rows = torch.searchsorted(state.ids, ids)
        # By all pairs, as a sum into places would add up in any order on a GPU.
        same = rows[:, None] == rows
        gaps = torch.where(same, priority.detach().double(), 0).sum(1) / same.sum(1)
        astray = 0 * state.deltas[rows]
        state.deltas = state.deltas.index_copy(0, rows, state.weights[rows] * gaps + astray)
        chances = self._chances(state.deltas)
        state.weights = state.weights.index_copy(0, rows, (len(chances) * chances[rows]) ** -self.beta)

    def _divisor(self, drawn: Tensor, held: Tensor) -> Tensor:
        if self.divide_by == "mean":
            return drawn.mean()
        return (drawn if self.divide_by == "largest" else held).max()

    def _chances(self, deltas: Tensor) -> Tensor:
        """P (N,) of deltas (N,). The largest mass is 1: neither too large nor too small a number for any alpha."""
        masses = deltas.abs() + self.eps
        masses = (masses / masses.max()) ** self.alpha
        return masses / masses.sum()


def _rows_at(chances: Tensor, at: Tensor) -> Tensor:
    """Which of N rows, one after the other as long as their `chances` (N,), lies at each of `at` (n,) in [0, 1).

    Lengths are counted in 2^-53: sums of integers are the same in whatever order a GPU makes them.
    """
    edges = (chances * 2.0**53).long().cumsum(0)
    return torch.searchsorted(edges, (at * edges[-1]).long(), right=True).clamp(max=len(edges) - 1)
