"""File layouts of image sets, and nothing else. All is read in place; nothing is written, nothing unpickled.

The one exception to the last is `known.torchvision_set`: torchvision checks the md5 of its files first.
"""

from condkd_ray.data.readers.halves import read_halves as read_halves
from condkd_ray.data.readers.idx import find_idx as find_idx
from condkd_ray.data.readers.idx import read_idx as read_idx
from condkd_ray.data.readers.idx import read_idx_pair as read_idx_pair
from condkd_ray.data.readers.images import Raw as Raw
from condkd_ray.data.readers.images import read_folder as read_folder
from condkd_ray.data.readers.images import resize as resize
from condkd_ray.data.readers.known import digits as digits
from condkd_ray.data.readers.known import idx_set as idx_set
from condkd_ray.data.readers.known import torchvision_set as torchvision_set
from condkd_ray.data.readers.parquet import find_parquet as find_parquet
from condkd_ray.data.readers.parquet import read_parquet as read_parquet
