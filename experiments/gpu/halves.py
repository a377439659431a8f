"""CIFAR-10 as two halves of at most 55 MB, to be copied to a machine one after the other; their folder is a data root.

Each half is a shard of the train images and one of the test images, `train-0000N-of-00002.parquet` and `test-...`, as
lossless WebP, a fifth smaller than PNG: every pixel stays. In experiments/, in about two minutes:

    python -m gpu.halves --data-root DIR --out HALVES

Where a folder has several test files `--test-file` names one; where none is named, or there is none, 10 000 images are
held out of train, as everywhere, and the halves have these for their test images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from condkd_ray.core.method import InputError, require
from condkd_ray.data.datasets import DataConfig, Dataset, load
from condkd_ray.data.writers import write_images

HALVES, LARGEST = 2, 55_000_000
"""How many, and the bytes of one at most."""


def write(dataset: Dataset, out: Path) -> list[int]:
    """Write the halves to the folder `out`; their bytes."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = [0] * HALVES
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        shards = zip(part.pixels.tensor_split(HALVES), part.labels.tensor_split(HALVES), strict=True)
        for number, (pixels, labels) in enumerate(shards):
            path = out / f"{name}-{number:05d}-of-{HALVES:05d}.parquet"
            write_images(path, pixels, labels, names=dataset.class_names, webp=True)
            sizes[number] += path.stat().st_size
    return sizes


def main(given: Sequence[str]) -> int:
    """From the command line. The exit code: 1 where a half is larger than it may be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, help="CIFAR-10, in any layout that is read")
    parser.add_argument("--test-file", help="which of several Parquet test files")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the halves")
    flags = parser.parse_args(given)
    there = sorted(path.name for path in flags.out.glob("*.parquet"))
    require(not there, f"Parquet files in {flags.out}", there, "none: another folder")
    dataset = load(DataConfig(name="cifar10", root=flags.data_root, test_file=flags.test_file))
    for note in dataset.notes:
        print(note)
    sizes = write(dataset, flags.out)
    print(f"{len(dataset.train)} train and {len(dataset.test)} test images in halves of", *sizes, "bytes")
    return int(max(sizes) > LARGEST)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
