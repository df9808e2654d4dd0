"""How far two pictures are apart to a network that learned to tell things: VGG16's features, and their correlations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inpaint_dist.batch import Image, Mask
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.pretrained import VGG16, find_pretrained, read_pretrained

LayerName: TypeAlias = Literal["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """Distance of VGG16's features (Johnson et al., Perceptual Losses, 2016, eq. 2)."""

    layers: tuple[LayerName, ...] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    """The features that count: the last ones of each of VGG16's stages, at 1, 1/2, 1/4 … of the picture's size."""
    window: float = 1.0
    """Look at a part of the picture alone, its sides that share of the picture's, around a pixel of the hole drawn at
    random: 0.5 costs a quarter. 1: the whole picture."""
    weights: Path | None = None
    """VGG16's file of weights; None: torch.hub's cache, or the official download."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise UsageError("--objective.perceptual.layers: give at least one")
        if not 0 < self.window <= 1:
            raise UsageError(f"--objective.perceptual.window {self.window}: give more than 0 and at most 1")

    def build(self) -> "VGG16Features":
        """Make the network, with its weights.

        Raises:
            UserError: the weights are nowhere, or of another network.
        """
        flag = "--objective.perceptual.weights"
        path = find_pretrained(VGG16, self.weights, flag)
        network = VGG16Features(self.layers)
        wanted = network.state_dict()
        tensors = read_pretrained(path)
        if not all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in wanted.items()):
            raise UserError(f"{path}: not {VGG16.name} ({VGG16.url}); name its file by {flag}")
        network.load_state_dict({name: tensors[name] for name in wanted})
        return network


class VGG16Features(nn.Module):
    """Image → features of some layers. Frozen; gradients flow to the image alone."""

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Sequence[LayerName]) -> None:
        super().__init__()
        depth = max(int(name[4]) for name in layers)
        modules: list[nn.Module] = []
        self.ends: list[int] = []
        """Where in `features` each wanted layer ends."""
        channels = 3
        for stage, widths in enumerate(_STAGES[:depth], 1):
            for width in widths:
                modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            if any(int(name[4]) == stage for name in layers):
                self.ends.append(len(modules) - 1)
            modules.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*modules[:-1])  # named and numbered as torchvision does
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, image: Image) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] → (B, C, h, w) of each layer asked for, first to last."""
        values = ((image + 1.0) / 2.0 - self.mean) / self.std
        found: list[Tensor] = []
        for place, module in enumerate(self.features):
            values = module(values)
            if place in self.ends:
                found.append(values)
        return found


def window_size(height: int, width: int, share: float) -> tuple[int, int]:
    """Height and width of a window in pixels: multiples of 16, which VGG16 halves to whole numbers, where they fit."""
    rows, columns = (min(side, max(16, round(side * share / 16) * 16)) for side in (height, width))
    return rows, columns


def window_corners(mask: Mask, luck: Float[Tensor, " batch"], size: tuple[int, int]) -> Int[Tensor, "batch 2"]:
    """Top and left of a window of `size` in each picture, around a pixel of its hole that its luck chooses.

    The window is moved into the picture where it would leave it. In a picture without a hole it lies at the end.
    """
    height, width = mask.shape[-2:]
    counted = mask.flatten(1).cumsum(1, dtype=torch.int64).float()  # of whole numbers a GPU repeats its sums
    wanted = luck[:, None] * counted[:, -1:]
    chosen = torch.searchsorted(counted, wanted, right=True)[:, 0].clamp_max(height * width - 1)
    rows = torch.div(chosen, width, rounding_mode="floor")
    middles = (rows, chosen - rows * width)
    rooms = (height - size[0], width - size[1])
    corners = [(middle - side // 2).clamp(0, room) for middle, side, room in zip(middles, size, rooms, strict=True)]
    return torch.stack(corners, dim=1)


def cut_windows(
    image: Image, corners: Int[Tensor, "batch 2"], size: tuple[int, int]
) -> Float[Tensor, "batch 3 rows columns"]:
    """Cut a window of `size` out of each picture: (B, 3, H, W) → (B, 3, *size)."""
    for dim, length in zip((2, 3), size, strict=True):
        places = corners[:, dim - 2, None] + torch.arange(length, device=image.device)
        shape, whole = [len(image), 1, 1, 1], list(image.shape)
        shape[dim], whole[dim] = length, length
        image = image.gather(dim, places.view(shape).expand(whole))
    return image


def perceptual_distance(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum over layers of the mean, over images and places, of the squared distance of features of unit length.

    Each place's features are divided by their length first (Zhang et al., The Unreasonable Effectiveness of Deep
    Features, 2018, eq. 1, all weights 1), so that no layer drowns the others; a layer's range is [0, 2].
    """
    pairs = zip(mine, theirs, strict=True)
    return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in pairs]).sum()


def style_distance(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum over layers of the mean absolute difference of Gram matrices.

    Liu et al., Image Inpainting for Irregular Holes Using Partial Convolutions, 2018, eq. 4.
    """
    pairs = zip(mine, theirs, strict=True)
    return torch.stack([(_gram(a) - _gram(b)).abs().mean() for a, b in pairs]).sum()


def _unit(features: Tensor) -> Tensor:
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().sum(1, keepdim=True) + 1e-10)


def _gram(features: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, C): how the channels go together, over all places, divided by C, H and W."""
    with torch.autocast(features.device.type, enabled=False):
        wide = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
        return wide @ wide.transpose(1, 2) / (wide.shape[1] * wide.shape[2])
