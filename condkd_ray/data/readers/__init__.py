"""Readers of image sets, one file per layout: image folders, Parquet, IDX, and data sets known by name.

All files are read in place. Only a download writes files, and only files whose md5 torchvision has verified are
unpickled.
"""

from condkd_ray.data.readers.class_folders import read_folder, read_halves
from condkd_ray.data.readers.idx import read_idx, read_idx_pair
from condkd_ray.data.readers.images import (
    Raw,
    RealImages,
    Size,
    check_labels,
    check_masks,
    resize,
    resize_masks,
    sides_of,
    without_void,
)
from condkd_ray.data.readers.known import IDX_SETS, TORCHVISION_SETS, digits, idx_set, torchvision_set
from condkd_ray.data.readers.mask_folders import Pair, find_camvid, find_mask_folders, read_mask_folder
from condkd_ray.data.readers.masks import CAMVID_NAMES, CAMVID_VOID, VOID, Classes, find_classes
from condkd_ray.data.readers.parquet import read_parquet, read_parquet_masks
from condkd_ray.data.readers.parquet_files import ParquetFiles, find_parquet

__all__ = [
    "CAMVID_NAMES",
    "CAMVID_VOID",
    "IDX_SETS",
    "TORCHVISION_SETS",
    "VOID",
    "Classes",
    "Pair",
    "ParquetFiles",
    "Raw",
    "RealImages",
    "Size",
    "check_labels",
    "check_masks",
    "digits",
    "find_camvid",
    "find_classes",
    "find_mask_folders",
    "find_parquet",
    "idx_set",
    "read_folder",
    "read_halves",
    "read_idx",
    "read_idx_pair",
    "read_mask_folder",
    "read_parquet",
    "read_parquet_masks",
    "resize",
    "resize_masks",
    "sides_of",
    "torchvision_set",
    "without_void",
]
