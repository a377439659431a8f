"""What every store knows of its samples besides the images: their classes, and which of them live."""

from __future__ import annotations

import torch
from torch import Tensor


class Ledger:
    """Classes and life of the ids given out so far, five bytes each. An id that no chunk ever covered is dead."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        # With room behind them, so that a round does not copy all: `_resize`.
        self._all_classes = torch.empty(0, dtype=torch.int32)
        self._all_live = torch.empty(0, dtype=torch.bool)
        self._resize(0)

    @property
    def num_ids(self) -> int:
        """Ids given out so far."""
        return len(self._live)

    @property
    def num_live(self) -> int:
        """Ids not dropped."""
        return int(self._live.sum())

    @property
    def class_counts(self) -> Tensor:
        """(K,) int64: live ids of each class. Those of which the teacher has not been asked count nowhere."""
        # One place further on, so that UNLABELLED, -1, has one too.
        return torch.bincount(self._classes[self._live] + 1, minlength=self._num_classes + 1)[1:]

    def cover(self, start: int, classes: Tensor) -> None:
        """A chunk with `classes` (n,) lies at the ids from `start`: new ids live, known ones are as alive as before."""
        known, stop = self.num_ids, start + len(classes)
        self._resize(max(known, stop))
        self._classes[start:stop] = classes.cpu().int()
        self._live[max(start, known) : stop] = True

    def drop(self, ids: Tensor) -> None:
        """Let `ids` die; ids unknown or dead already are passed over."""
        ids = ids.cpu()
        self._live[ids[(ids >= 0) & (ids < self.num_ids)]] = False

    def any_live(self, start: int, count: int) -> bool:
        """Whether one of the `count` ids from `start` lives."""
        return bool(self._live[start : start + count].any())

    def restore(self, num_ids: int, live: Tensor) -> None:
        """Become as at a checkpoint: `num_ids` given out, of them exactly `live` alive."""
        self._resize(num_ids)
        self._live[:] = False
        self._live[live.cpu()] = True

    def _resize(self, num_ids: int) -> None:
        known = len(self._all_live)
        if num_ids > known:
            room = max(num_ids, known + known // 4) - known
            self._all_classes = torch.cat([self._all_classes, self._all_classes.new_zeros(room)])
            self._all_live = torch.cat([self._all_live, self._all_live.new_zeros(room)])
        self._all_live[num_ids:] = False
        self._classes, self._live = self._all_classes[:num_ids], self._all_live[:num_ids]
