r"""MobileNetV1 1.0 as a feature extractor: pictures in [-1, 1] to 1024 features.

    edge-pslora adapt photos/ --model examples.mobilenet_v1:mobilenet_v1 \
        --weights model.safetensors

Howard et al. 2017, arXiv 1704.04861, with the tensor names of the Keras weights (conv1,
conv_dw_1, conv_pw_1, ..., each with a `_bn`) in torch's layout. The last of the paper's thirteen
blocks and the classifier are left out.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

# (output channels, stride) of the blocks 1 to 12
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2)),
)


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's "same" padding for an even side.

    At stride 2 that is one row at the bottom and one column at the right, none at the top and left.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = (0, 1, 0, 1) if self.stride[0] == 2 else (1, 1, 1, 1)
        return super().forward(F.pad(x, padding))


class MobileNetV1(nn.Module):
    """Pictures [N, 3, S, S], S a multiple of 32 -> features [N, 1024]."""

    # how edge-pslora prepares pictures: side in pixels, then (value in [0, 1] - mean) / std
    image_size = 96
    image_mean = 0.5
    image_std = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = SameConv2d(3, 32, 3, stride=2, bias=False)
        self.conv1_bn = nn.BatchNorm2d(32, eps=1e-3)
        size = 32
        for number, (width, stride) in enumerate(BLOCKS, start=1):
            depthwise = SameConv2d(size, size, 3, stride=stride, groups=size, bias=False)
            self.add_module(f"conv_dw_{number}", depthwise)
            self.add_module(f"conv_dw_{number}_bn", nn.BatchNorm2d(size, eps=1e-3))
            self.add_module(f"conv_pw_{number}", nn.Conv2d(size, width, 1, bias=False))
            self.add_module(f"conv_pw_{number}_bn", nn.BatchNorm2d(width, eps=1e-3))
            size = width

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = self._step("conv1", pictures)
        for number in range(1, len(BLOCKS) + 1):
            x = self._step(f"conv_dw_{number}", x)
            x = self._step(f"conv_pw_{number}", x)
        return x.mean((2, 3))

    def _step(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))


def mobilenet_v1() -> nn.Module:
    """The network with random weights; give `--weights` for trained ones."""
    return MobileNetV1()
