"""Writes CIFAR-10 as two halves of at most 55 MB, for copying to a machine one by one; their folder is a data root.

Each half is a shard of the train images and one of the test images, `train-0000N-of-00002.parquet` and `test-...`, in
lossless WebP, a fifth smaller than PNG. In experiments/, in about two minutes:

    python -m gpu.halves --data-root DIR --out HALVES

If a folder has several test files, `--test-file` names one. Without a named test file, 10 000 train images are held
out, as for all data sets, and are the test images of the halves.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from condkd_ray.core.method import InputError, require
from condkd_ray.data.datasets import DataConfig, Dataset, load
from condkd_ray.data.writers import write_images

HALVES, LARGEST = 2, 55_000_000
"""Number of halves, and the largest accepted size of one in bytes."""


def write(dataset: Dataset, out: Path) -> list[int]:
    """Write the halves to the folder `out`, and return their sizes in bytes."""
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
    """Run the command, and return its exit code: 1 if a half is too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10, in any accepted layout")
    parser.add_argument("--test-file", help="name of the Parquet test file, if there are several")
    parser.add_argument("--out", type=Path, required=True, help="folder for the halves")
    flags = parser.parse_args(given)
    there = sorted(path.name for path in flags.out.glob("*.parquet"))
    require(not there, f"Parquet files in {flags.out}", there, "none: choose another folder")
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
