"""Data sets: reading, writing and augmentation of images."""

from condkd_ray.data.datasets import DataConfig as DataConfig
from condkd_ray.data.datasets import Dataset as Dataset
from condkd_ray.data.datasets import DataSource as DataSource
from condkd_ray.data.datasets import Found as Found
from condkd_ray.data.datasets import load as load
from condkd_ray.data.readers import Raw as Raw
