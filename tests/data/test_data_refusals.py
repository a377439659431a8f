from pathlib import Path

import pytest
import torch

from condkd_ray.core.config import build
from condkd_ray.core.method import InputError
from condkd_ray.data.datasets import DataConfig, load
from data.image_files import write_parquet


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"size": 0}, "data.size is 0"),
        ({"size": (8, 0)}, r"data.size is \(8, 0\); accepted: .* two such integers \(height and width\)"),
        ({"size": (8,)}, r"data.size is \(8,\)"),
        ({"val_fraction": 0.6}, "data.val_fraction is 0.6"),
        ({"name": "mnist", "val_fraction": -0.1}, "data.val_fraction is -0.1"),
        ({"val_fraction": 0.1}, "197 validation images"),
        ({"name": "mnist", "train_file": "a.parquet"}, "train_file"),
        ({"name": "parquet", "download": True}, "data.download of parquet"),
        ({"mean": (0.5,)}, "both or none"),
        ({"mean": (0.5,), "std": (0.0,)}, "positive"),
    ],
)
def test_impossible_configs_are_refused(fields: dict, problem: str):
    with pytest.raises(InputError, match=problem):
        DataConfig(**fields)


@pytest.mark.parametrize("size", [[4, 6, 8], [4, "x"], "x"])
def test_sizes_of_other_types_are_refused_with_both_forms(size: object):
    with pytest.raises(InputError, match=r"data: size is .*; accepted: .*integer.*, or .*(tuple|Tuple|integer)"):
        build(DataConfig, {"size": size}, "data")


def test_roots_that_are_missing_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"data\.root of mnist is None"):
        load(DataConfig(name="mnist"))
    with pytest.raises(InputError, match="an existing folder"):
        load(DataConfig(name="parquet", root=tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"train\*\.parquet"):
        load(DataConfig(name="parquet", root=tmp_path))


def test_identical_images_cannot_be_normalised(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", torch.full((10, 1, 2, 2), 9, dtype=torch.uint8), torch.arange(10))
    with pytest.raises(InputError, match="not all the same"):
        load(DataConfig(name="parquet", root=tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_normalisation_is_finite(value: float):
    with pytest.raises(InputError, match=r"data\.mean is .*; accepted: finite values"):
        DataConfig(mean=(value,), std=(1.0,))
    with pytest.raises(InputError, match=r"data\.std is .*; accepted: positive, finite values"):
        DataConfig(mean=(0.0,), std=(value,))
