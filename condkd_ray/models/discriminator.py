"""A small discriminator over teacher features, conditional on the class in one of four ways.

Letters: B batch, D features, K classes. Source: `methods.md` 1.5; the published paper gives no architecture, so all
of it is our choice.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Condition = Literal["auxiliary", "projection", "per_class", "none"]


class FeatureDiscriminator(nn.Module):
    """Features (B, D) and labels (B,) to a real-or-fake logit (B,), and class logits (B, K) where it has a head.

    `auxiliary`: a second head names the class. `projection`: the inner product of the hidden layer with an embedding of
    the label is added. `per_class`: one logit a class, of which the label's counts. `none`: labels are not looked at.
    Two hidden layers; `spectral` bounds each layer's norm by 1, since the real side has only K x ipc images.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        hidden: tuple[int, int] = (512, 256),
        spectral: bool,
        condition: Condition = "auxiliary",
    ) -> None:
        super().__init__()

        def bounded(layer: nn.Module) -> nn.Module:
            return spectral_norm(layer) if spectral else layer

        self.trunk = nn.Sequential(
            bounded(nn.Linear(features, hidden[0])),
            nn.LeakyReLU(0.2),
            bounded(nn.Linear(hidden[0], hidden[1])),
            nn.LeakyReLU(0.2),
        )
        self.adversarial = bounded(nn.Linear(hidden[1], num_classes if condition == "per_class" else 1))
        self.classes = bounded(nn.Linear(hidden[1], num_classes)) if condition == "auxiliary" else None
        self.embedding = None
        if condition == "projection":
            embedding = nn.Embedding(num_classes, hidden[1])
            # At its own unit variance the labels would outweigh the features from the start.
            nn.init.normal_(embedding.weight, std=hidden[1] ** -0.5)
            self.embedding = bounded(embedding)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, D), (B,) to ((B,), (B, K) or None), float32 also under autocast: losses read them."""
        x = self.trunk(features)
        judged = self.adversarial(x).float()
        judged = judged.squeeze(1) if judged.shape[1] == 1 else judged.gather(1, labels[:, None]).squeeze(1)
        if self.embedding is not None:
            judged = judged + (self.embedding(labels) * x).sum(1).float()
        return judged, None if self.classes is None else self.classes(x).float()
