"""Networks of public projects: their structure and their names of weights, with random weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Padding(nn.Module):
    """Takes every second place, and pads a quarter of the output channels as zeros on either side."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.zeros = outputs // 4

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros, self.zeros))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, *, pads: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, outputs, stride), bn(outputs)
        self.conv2, self.bn2 = conv3(outputs, outputs), bn(outputs)
        beside: nn.Module = nn.Sequential()
        if stride != 1 or inputs != outputs:
            strided = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), bn(outputs))
            beside = Padding(outputs) if pads else strided
        setattr(self, shortcut, beside)
        self.beside = shortcut

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + getattr(self, self.beside)(x))


class ResNet(nn.Module):
    """Layers `conv1, bn1, layer1.0.conv1, ...`, shortcuts and a last layer of any name, and three or four stages."""

    def __init__(
        self, blocks: tuple[int, ...], widths: tuple[int, ...], shortcut: str, last: str, *, pads: bool = False
    ) -> None:
        super().__init__()
        stem, *widths_of_stages = widths
        self.conv1, self.bn1, self.last, inputs = conv3(3, stem), bn(stem), last, stem
        for number, (count, width) in enumerate(zip(blocks, widths_of_stages, strict=True), start=1):
            layers = [Block(inputs, width, 1 if number == 1 else 2, shortcut, pads=pads)]
            layers += [Block(width, width, 1, shortcut, pads=pads) for _ in range(count - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*layers))
            inputs = width
        setattr(self, last, nn.Linear(inputs, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for name, layer in self.named_children():
            x = layer(x) if name.startswith("layer") else x
        return getattr(self, self.last)(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = bn(inputs), conv3(inputs, outputs, stride)
        self.bn2, self.conv2 = bn(outputs), conv3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        inner = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return inner + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, inputs: int, outputs: int, count: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(outputs, outputs, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth: int, factor: int) -> None:
        super().__init__()
        count, widths = (depth - 4) // 6, (16, 16 * factor, 32 * factor, 64 * factor)
        self.conv1 = conv3(3, 16)
        self.block1 = WideStage(widths[0], widths[1], count, 1)
        self.block2 = WideStage(widths[1], widths[2], count, 2)
        self.block3 = WideStage(widths[2], widths[3], count, 2)
        self.bn1, self.fc = bn(widths[3]), nn.Linear(widths[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class Vgg(nn.Module):
    """VGG-11 with BN in five blocks; poolings and the last ReLU of each block are between the blocks.

    Only images with a height of 64 pixels are pooled before the last block.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inputs = 3
        for number, (count, factor) in enumerate(((1, 1), (1, 2), (2, 4), (2, 8), (2, 8))):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(inputs, factor * width, 3, padding=1), bn(factor * width), nn.ReLU()]
                inputs = factor * width
            setattr(self, f"block{number}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        poolings = 4 if x.shape[2] == 64 else 3
        for number in range(5):
            x = F.relu(getattr(self, f"block{number}")(x))
            if number < poolings:
                x = F.max_pool2d(x, 2)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class LeNet(nn.Module):
    def __init__(self, first: int, second: int, third: int, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, first, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(second, third, 5), nn.ReLU()),
        )
        self.fc = nn.Sequential(nn.Linear(third, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


@torch.no_grad()
def trained(network: nn.Module) -> nn.Module:
    """Return `network` in eval mode, with BN statistics, scales and shifts that differ in every channel."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            for tensor in (layer.weight, layer.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                tensor.normal_(0, 0.3)
    return network.eval()
