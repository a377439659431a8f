"""What a trial makes for others to use: its student, and the synthetic images it remembers. One file a trial.

A product says by itself what it is: a reader needs neither the teacher nor the data set it was made from.
Letters: N images, C channels, H W height and width, K classes.
"""

from dataclasses import dataclass, field

from torch import Tensor

from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import Encoded, PixelSpace
from condkd_ray.core.storage import Location


def product_path(folder: Location) -> Location:
    """Where a trial leaves its product, in a `folder` of its own."""
    return folder / "product.safetensors"


@dataclass
class Product:
    """A student and its synthetic set, with all that is needed to use them."""

    student: dict[str, Tensor] = field(default_factory=dict)
    """The student's state dict."""
    network: str = ""
    """Its architecture, as `models.parse` reads it."""
    num_classes: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    """(C, H, W)."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Of the normalisation, a channel, in units of [0, 1] pixels."""
    space: PixelSpace = "unit"
    """How `images` are held: uint8 of [0, 1] pixels, or float16 in the normalised space."""
    images: Tensor | None = None
    """(N, C, H, W); None where the trial remembers no images."""
    labels: Tensor | None = None
    """(N,) int64."""
    logits: Tensor | None = None
    """(N, K) float16, the teacher's on just these images."""

    @property
    def samples(self) -> Encoded | None:
        """The synthetic set as it is kept."""
        if self.images is None or self.labels is None or self.logits is None:
            return None
        return Encoded(self.images, self.labels, self.logits)


def write_product(product: Product, path: Location) -> None:
    """Atomically."""
    states.save(product, path)


def read_product(path: Location) -> Product:
    """Raises `InputError` where there is none."""
    try:
        return states.load(Product(), path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"product is {str(path)!r}, which cannot be read ({error}); accepted: that of a kept trial"
        ) from None
