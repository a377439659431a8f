"""Check that the plug-ins satisfy the contracts of condkd_ray: `python check.py`, or call `check` in your tests."""

from condkd_blobs.dataset import Blobs
from condkd_blobs.guidance import ClassMeans
from condkd_blobs.inversion import Smooth
from condkd_blobs.loss import LogitL2
from condkd_blobs.network import Tiny

from condkd_ray.testing import check

METHODS = (Smooth(steps=2, batch=16), ClassMeans(), Tiny(width=4), Blobs(count=40), LogitL2())

if __name__ == "__main__":
    for method in METHODS:
        check(method)
        print(f"{method.name} keeps its contract")
