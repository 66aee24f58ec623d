"""Residual networks for images of 32 x 32 pixels. A smaller or larger image works too."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from ...errors import UserError


def resnet18(num_classes: int = 100) -> nn.Sequential:
    """Make a ResNet-18 whose first layer suits small images: 3x3, stride 1, no max-pooling after it.

    Four stages of two basic blocks have 64, 128, 256 and 512 channels and strides 1, 2, 2, 2. With 100 classes it has
    11,220,132 parameters.

    Args:
        num_classes: Outputs, at least 1.

    Returns:
        The network, with children ``stem``, ``stage1`` to ``stage4`` and ``head``.

    Raises:
        UserError: `num_classes` is not a whole number of at least 1.

    Reference:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (https://arxiv.org/abs/1512.03385).

    Example:
        >>> sum(parameter.numel() for parameter in resnet18(num_classes=100).parameters())
        11220132
    """
    _check("resnet18: num_classes", num_classes)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["stem"] = nn.Sequential(_conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
    width = 64
    for stage, out in enumerate((64, 128, 256, 512), start=1):
        parts[f"stage{stage}"] = nn.Sequential(_Block(width, out, 1 if stage == 1 else 2), _Block(out, out, 1))
        width = out
    parts["head"] = nn.Sequential(_GlobalAverage(), nn.Linear(width, num_classes))
    return _initialised(nn.Sequential(parts))


def wide_resnet(depth: int = 28, widen: int = 10, num_classes: int = 100) -> nn.Sequential:
    """Make a wide residual network with pre-activation and without dropout; WRN-28-10 unless told otherwise.

    Three stages of ``(depth - 4) / 6`` blocks have 16, 32 and 64 times `widen` channels and strides 1, 2, 2. Where a
    block changes the shape, its 1x1 shortcut reads the same normalised and rectified input as its first convolution.
    WRN-28-10 with 100 classes has 36,536,884 parameters.

    Args:
        depth: Layers: 10, 16, 22, 28, and so on in steps of 6.
        widen: Factor of the channels, at least 1.
        num_classes: Outputs, at least 1.

    Returns:
        The network, with children ``stem``, ``stage1`` to ``stage3`` and ``head``.

    Raises:
        UserError: An argument is not a whole number in its range.

    Reference:
        Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016 (https://arxiv.org/abs/1605.07146).

    Example:
        >>> sum(parameter.numel() for parameter in wide_resnet(depth=10, widen=1, num_classes=10).parameters())
        77850
    """
    _check("wide_resnet: depth", depth)
    if depth < 10 or depth % 6 != 4:
        raise UserError(f"wide_resnet: depth must be 10, 16, 22, 28, ... (6 n + 4), got {depth}")
    _check("wide_resnet: widen", widen)
    _check("wide_resnet: num_classes", num_classes)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["stem"] = _conv(3, 16, 3)
    width = 16
    for stage, base in enumerate((16, 32, 64), start=1):
        out = base * widen
        first = _PreActivationBlock(width, out, 1 if stage == 1 else 2)
        rest = [_PreActivationBlock(out, out, 1) for _ in range((depth - 4) // 6 - 1)]
        parts[f"stage{stage}"] = nn.Sequential(first, *rest)
        width = out
    parts["head"] = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), _GlobalAverage(), nn.Linear(width, num_classes))
    return _initialised(nn.Sequential(parts))


class _Block(nn.Module):
    """Two convolutions, each normalised, and a shortcut; rectified after the sum."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(width, out, 3, stride), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = _conv(out, out, 3), nn.BatchNorm2d(out)
        same = stride == 1 and width == out
        self.shortcut = nn.Sequential() if same else nn.Sequential(_conv(width, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _PreActivationBlock(nn.Module):
    """Two convolutions, each after a normalised and rectified input, and a shortcut; nothing after the sum."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), _conv(width, out, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(out), _conv(out, out, 3)
        same = stride == 1 and width == out
        self.shortcut = None if same else _conv(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        y: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class _GlobalAverage(nn.Module):
    """The mean over all pixels. The pooling layers of torch have no deterministic gradient on an accelerator."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def _conv(width: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, stride, padding=kernel // 2, bias=False)


def _initialised(model: nn.Sequential) -> nn.Sequential:
    """Scale the convolutions by their fan-out. Batch norm is already 1 and 0; the linear bias becomes 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model


def _check(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
