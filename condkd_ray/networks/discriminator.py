"""A small discriminator over teacher features, with an auxiliary class head.

Letters: B batch, D features, K classes. Source: `methods.md` 1.5; the published paper gives no architecture, so all
of it is our choice.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class FeatureDiscriminator(nn.Module):
    """Features (B, D) to a real-or-fake logit (B,) and class logits (B, K).

    Two hidden layers; `spectral` bounds each linear layer's norm by 1, since the real side has only K x ipc images.
    """

    def __init__(
        self, features: int, num_classes: int, *, hidden: tuple[int, int] = (512, 256), spectral: bool
    ) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> nn.Module:
            layer = nn.Linear(inputs, outputs)
            return spectral_norm(layer) if spectral else layer

        self.trunk = nn.Sequential(
            linear(features, hidden[0]), nn.LeakyReLU(0.2), linear(hidden[0], hidden[1]), nn.LeakyReLU(0.2)
        )
        self.adversarial = linear(hidden[1], 1)
        self.classes = linear(hidden[1], num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) to ((B,), (B, K)), float32 also under autocast: losses read them."""
        x = self.trunk(features)
        return self.adversarial(x).squeeze(1).float(), self.classes(x).float()
