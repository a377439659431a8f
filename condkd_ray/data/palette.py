"""Colours of classes, for pictures of masks.

The first seven colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with a colour vision
deficiency can tell apart. Each further colour is the one farthest from all before it (our choice): the distance of two
colours is that in OKLab (Ottosson, "A perceptual color space for image processing", 2020), the smallest over normal
vision, protanopia and deuteranopia, which are simulated with the matrices of Machado et al. (IEEE TVCG 2009, severity
1). So the colour of a class does not depend on the number of classes.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

MOST = 256
"""Number of different colours; the colours of further classes repeat."""
_OKABE_ITO = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
_LEVELS = 16
"""Levels of each channel among which further colours are chosen."""
_DARKEST, _LIGHTEST = 0.36, 0.93
"""Limits of a further colour's lightness in OKLab: it must differ from black and from white at a glance."""
_SEEN = np.array([
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
])  # fmt: skip
"""Matrices (3, 3, 3) from linear RGB to linear RGB as seen with normal vision, protanopia and deuteranopia."""
_CONES = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_OKLAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip


def colours(num_classes: int) -> Tensor:
    """Return the RGB colours (K, 3) uint8 of K classes."""
    return _table()[1:][torch.arange(num_classes) % MOST]


def coloured(masks: Tensor) -> Tensor:
    """Return masks (N, H, W) of class numbers as RGB images (N, 3, H, W) uint8; pixels without a class are black."""
    masks = masks.long()
    places = torch.where(masks < 0, 0, masks % MOST + 1)
    return _table().to(masks.device)[places].permute(0, 3, 1, 2).contiguous()


@cache
def _table() -> Tensor:
    """Return (1 + MOST, 3) uint8: black, and the colours of the classes."""
    levels = np.linspace(0, 255, _LEVELS).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness = _lab(grid)[0, :, 0]
    candidates = grid[(lightness > _DARKEST) & (lightness < _LIGHTEST)]
    fixed = np.array([list(bytes.fromhex(text)) for text in _OKABE_ITO], dtype=np.float64)
    # Black is the colour of pixels without a class, and white that of the paper.
    apart = np.array([[0, 0, 0], [255, 255, 255]], dtype=np.float64)
    chosen, distances = list(fixed), _distances(candidates, np.concatenate([apart, fixed])).min(1)
    while len(chosen) < MOST:
        chosen.append(candidates[distances.argmax()])
        distances = np.minimum(distances, _distances(candidates, chosen[-1][None])[:, 0])
    return torch.from_numpy(np.array([apart[0], *chosen]).astype(np.uint8))


def _distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (N, M) distances of the colours `left` (N, 3) and `right` (M, 3), the smallest over kinds of vision."""
    between = _lab(left)[:, :, None] - _lab(right)[:, None]
    return np.linalg.norm(between, axis=-1).min(0)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Return OKLab coordinates (3, N, 3) of colours (N, 3), 0 to 255, by kind of vision."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = (linear @ _SEEN.transpose(0, 2, 1)).clip(0, 1)
    return np.cbrt(seen @ _CONES.T) @ _OKLAB.T
