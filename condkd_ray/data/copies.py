"""Equal images, pixel for pixel: in train and test, under two labels, and on one side of a split.

A test image that is a train image measures memory. Found by a hash of the decoded pixels, 0.15 s for the 50 000
images of CIFAR-10; an image that was saved as JPEG once more is no copy here.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def fingerprints(pixels: Tensor) -> list[bytes]:
    """16 bytes an image of uint8 (N, C, H, W): equal for equal pixels of equal shape, and for no others."""
    shape = str(tuple(pixels.shape[1:])).encode()
    return [hashlib.blake2b(row, digest_size=16, key=shape).digest() for row in pixels.contiguous().flatten(1).numpy()]


def first_copies(prints: Sequence[bytes]) -> Tensor:
    """int64 (N,): the first row with the same fingerprint, for each row; 0, 1, 2 ... where no two are equal."""
    first: dict[bytes, int] = {}
    return torch.tensor([first.setdefault(key, row) for row, key in enumerate(prints)], dtype=torch.int64)


def split(order: Tensor, sizes: Sequence[int], first: Tensor) -> list[Tensor]:
    """The rows of each part, ascending: the first of `order` (N,) are part 0, and so on, `sizes` rows each.

    Copies, as `first_copies` finds them, are all where their first is; then a part may be off its size by less than the
    copies of one image.
    """
    firsts = order[first[order] == order]
    counts = first.bincount(minlength=len(order))[firsts]
    part = torch.empty_like(order)
    part[firsts] = torch.bucketize(counts.cumsum(0) - counts, torch.tensor(sizes).cumsum(0)[:-1], right=True)
    return [(part[first] == number).nonzero().flatten() for number in range(len(sizes))]


def split_note(first: Tensor) -> list[str]:
    """The sentence that belongs to a split of images of which `first_copies` has found some to be copies."""
    count = int((first != torch.arange(len(first))).sum())
    return [f"{count} of {len(first)} images are copies of others: each is on the side of its original"] * (count > 0)


def notes(train: Sequence[bytes], test: Sequence[bytes], labels: Tensor) -> Iterator[str]:
    """A sentence each on test images that are train images, and on copies that differ in their labels.

    `train`, `test`: fingerprints; `labels`: int64, of both, one after the other.
    """
    there = set(train)
    shared = sum(key in there for key in test)
    if shared:
        which = f"ALL {shared}" if shared == len(test) else f"{shared} of {len(test)}"
        yield f"{which} test images are train images, pixel for pixel: on them accuracy tells what was learnt by heart"
    first = first_copies([*train, *test])
    lowest, highest = (labels.scatter_reduce(0, first, labels, reduce=how)[first] for how in ("amin", "amax"))
    torn = int((lowest != highest).sum())
    if torn:
        yield f"{torn} of {len(labels)} images have a copy of another label, pixel for pixel: one of the two is wrong"
