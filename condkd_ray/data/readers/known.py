"""Data sets known by name: scikit-learn's digits, the IDX sets, and the sets that torchvision reads."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condkd_ray.core.method import InputError, require
from condkd_ray.data.readers.idx import IDX_FILES, find_idx, read_idx_pair
from condkd_ray.data.readers.images import Raw

DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
IDX_SETS = {"mnist": ("MNIST", DIGIT_NAMES), "fashion_mnist": ("FashionMNIST", FASHION_NAMES)}
TORCHVISION_SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}


def digits() -> Raw:
    """Return scikit-learn's 1797 digits (1797, 1, 8, 8), with values 0 to 16 scaled to 0 to 255."""
    from sklearn.datasets import load_digits  # not at the top: seconds to import, and only digits need it

    bundle: Any = load_digits()
    pixels = torch.from_numpy(bundle.images * 255 / 16).round().to(torch.uint8)[:, None]
    return Raw(pixels, torch.from_numpy(bundle.target).long(), DIGIT_NAMES)


def idx_set(name: str, root: Path, *, download: bool) -> tuple[Raw, Raw]:
    """Return train and test set of `mnist` or `fashion_mnist` from `root`, its sub-folder `raw` or torchvision's.

    `download` fetches missing files into torchvision's layout. Raises `InputError` if files are missing.
    """
    kind, names = IDX_SETS[name]
    folders = [root, root / "raw", root / kind / "raw"]
    if download and find_idx(folders) is None:
        _open(kind, root, train=True, download=True)
    files = find_idx(folders)
    accepted = f"{', '.join(IDX_FILES)}, each plain or as .gz, all in one of {', '.join(map(str, folders))}"
    require(files is not None, f"data.root of {name}", str(root), accepted)
    train_images, train_labels, test_images, test_labels = files or []
    return read_idx_pair(train_images, train_labels, names), read_idx_pair(test_images, test_labels, names)


def torchvision_set(name: str, root: Path, *, download: bool) -> tuple[Raw, Raw]:
    """Return train and test set of `cifar10`, `cifar100` or `svhn` in torchvision's layout.

    CIFAR's files are pickles; torchvision compares their md5 with the published one before it opens them. Raises
    `InputError` if they cannot be read.
    """
    kind = TORCHVISION_SETS[name]
    svhn = kind == "SVHN"
    parts = []
    for split in ("train", "test"):
        which = {"split": split} if svhn else {"train": split == "train"}
        part = _open(kind, root, download=download, **which)
        pixels = torch.from_numpy(part.data if svhn else part.data.transpose(0, 3, 1, 2)).contiguous()
        labels = torch.as_tensor(part.labels if svhn else part.targets, dtype=torch.int64)
        parts.append(Raw(pixels, labels, DIGIT_NAMES if svhn else tuple(part.classes)))
    return parts[0], parts[1]


def _open(kind: str, root: Path, **options: Any) -> Any:
    import torchvision.datasets  # not at the top: over a second to import

    try:
        with warnings.catch_warnings():
            # CIFAR's pickles contain old numpy dtypes, of which numpy now warns.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return getattr(torchvision.datasets, kind)(root, **options)
    except (RuntimeError, OSError) as error:
        raise InputError(f"cannot read {kind} in {root}: {error}; accepted: torchvision's layout or Parquet") from error
