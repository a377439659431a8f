"""Identical images: in both train and test set, with different labels, or in different parts of a split.

A test image that is also a train image measures memorisation. Copies are found by a hash of the decoded pixels, in 0.15
s for the 50 000 images of CIFAR-10. An image that was compressed again as JPEG is not recognised as a copy.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def fingerprints(pixels: Tensor) -> list[bytes]:
    """Return a 16-byte hash for each image of uint8 (N, C, H, W), equal only for equal pixels and equal shape.

    Also of each mask of int16 (N, H, W).
    """
    shape = str(tuple(pixels.shape[1:])).encode()
    return [hashlib.blake2b(row, digest_size=16, key=shape).digest() for row in pixels.contiguous().flatten(1).numpy()]


def first_copies(prints: Sequence[bytes]) -> Tensor:
    """Return for each row the first row with the same fingerprint, int64 (N,): 0, 1, 2 ... if there are no copies."""
    first: dict[bytes, int] = {}
    return torch.tensor([first.setdefault(key, row) for row, key in enumerate(prints)], dtype=torch.int64)


def split(order: Tensor, sizes: Sequence[int], first: Tensor) -> list[Tensor]:
    """Return the rows of each part, ascending: the first `sizes[0]` rows of `order` (N,) are part 0, and so on.

    Copies, as found by `first_copies`, go to the part of their first row. The size of a part may therefore differ by
    less than the number of copies of one image.
    """
    firsts = order[first[order] == order]
    counts = first.bincount(minlength=len(order))[firsts]
    part = torch.empty_like(order)
    part[firsts] = torch.bucketize(counts.cumsum(0) - counts, torch.tensor(sizes).cumsum(0)[:-1], right=True)
    return [(part[first] == number).nonzero().flatten() for number in range(len(sizes))]


def split_note(first: Tensor) -> list[str]:
    """Return the note on copies for a split data set, or an empty list; `first` comes from `first_copies`."""
    count = int((first != torch.arange(len(first))).sum())
    text = f"{count} of {len(first)} images are copies of others: each is in the same part of the split as its original"
    return [text] * (count > 0)


def notes(train: Sequence[bytes], test: Sequence[bytes], labels: Tensor) -> Iterator[str]:
    """Yield one sentence on test images that are train images, and one on copies with different labels.

    `train`, `test`: fingerprints; `labels`: int64 (N,) or int16 (N, H, W), those of train followed by those of test.
    """
    masks = labels.ndim > 1
    if masks:  # equal masks get equal numbers
        labels = first_copies(fingerprints(labels))
    there = set(train)
    shared = sum(key in there for key in test)
    score, label = ("mean IoU", "mask") if masks else ("accuracy", "label")
    if shared:
        which = f"ALL {shared}" if shared == len(test) else f"{shared} of {len(test)}"
        yield f"{which} test images are train images, pixel for pixel: {score} on them measures memorisation"
    first = first_copies([*train, *test])
    lowest, highest = (labels.scatter_reduce(0, first, labels, reduce=how)[first] for how in ("amin", "amax"))
    contradictory = int((lowest != highest).sum())
    if contradictory:
        which = f"{contradictory} of {len(labels)} images"
        yield f"{which} have an identical copy with another {label}: one {label} is wrong"
