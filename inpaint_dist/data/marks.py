"""What masks are made of: strokes, boxes, brush walks, each a law with its parameters that draws on a canvas in place.

A canvas is uint8 (H, W) of 0 (known) and 255 (hole). Parameters in pixels are those of a 256x256 picture; `scale` is
what they are multiplied by. Randomness comes from `rng.random()` alone, whose stream Python has frozen.
"""

import math
import random
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.data.opencv import cv2

MaskArray: TypeAlias = NDArray[np.uint8]
"""(H, W), 0 or 255."""


@dataclass(frozen=True, kw_only=True)
class Strokes:
    """LaMa's irregular strokes: chains of thick segments whose headings are whole radians (arXiv:2109.07161)."""

    count: tuple[int, int]
    """Fewest and most strokes."""
    max_len: int
    """A segment is 10 to 9 + max_len pixels long."""
    max_width: int
    """A segment is 5 to 4 + max_width pixels wide."""
    max_angle: int = 4
    """A segment's heading is 0.01 + 0, 1, … max_angle - 1 radians, mirrored for every other stroke."""
    max_segments: int = 5
    """A stroke is 1 to max_segments long."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:
        """Add the strokes to the canvas, in place."""
        uniform, line = rng.random, cv2.line
        height, width = canvas.shape
        max_angle, max_len, max_width = self.max_angle, self.max_len, self.max_width
        headings = [(math.sin(0.01 + turn) * scale, math.cos(0.01 + turn) * scale) for turn in range(max_angle)]
        for stroke in range(_between(uniform(), self.count)):
            mirror = 1 if stroke % 2 else -1
            x, y = int(uniform() * width), int(uniform() * height)
            for _ in range(1 + int(uniform() * self.max_segments)):
                right, down = headings[int(uniform() * max_angle)]
                length = 10 + int(uniform() * max_len)
                thickness = int((5 + int(uniform() * max_width)) * scale) or 1
                end_x, end_y = int(x + mirror * length * right), int(y + length * down)
                # Comparisons, for min(max(…)) takes as long as a fifth of the whole mask.
                end_x = 0 if end_x < 0 else width if end_x > width else end_x
                end_y = 0 if end_y < 0 else height if end_y > height else end_y
                line(canvas, (x, y), (end_x, end_y), 255, thickness)
                x, y = end_x, end_y


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """LaMa's boxes: whole inside the picture, less a margin."""

    count: tuple[int, int]
    """Fewest and most boxes."""
    side: tuple[int, int]
    """Shortest and longest side in pixels; width and height are drawn apart."""
    margin: int
    """Pixels at the picture's border that no box touches."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:
        """Add the boxes to the canvas, in place."""
        uniform = rng.random
        height, width = canvas.shape
        margin = int(self.margin * scale)
        for _ in range(_between(uniform(), self.count)):
            box_width = min(int(_between(uniform(), self.side) * scale) or 1, width - 2 * margin)
            box_height = min(int(_between(uniform(), self.side) * scale) or 1, height - 2 * margin)
            x = margin + int(uniform() * (width - 2 * margin - box_width + 1))
            y = margin + int(uniform() * (height - 2 * margin - box_height + 1))
            canvas[y : y + box_height, x : x + box_width] = 255


@dataclass(frozen=True, kw_only=True)
class Patches:
    """CoModGAN's and MAT's boxes: up to a share of the picture's side, and up to half of each may hang outside."""

    most: int
    """None to this many."""
    share: float
    """A side is 0 to this share of the picture's."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:  # noqa: ARG002 (shares have no pixels)
        """Add the patches to the canvas, in place."""
        uniform = rng.random
        height, width = canvas.shape
        for _ in range(_between(uniform(), (0, self.most))):
            patch_width, patch_height = int(uniform() * width * self.share), int(uniform() * height * self.share)
            half_width, half_height = patch_width // 2, patch_height // 2
            x = int(uniform() * (width - patch_width + 2 * half_width)) - half_width
            y = int(uniform() * (height - patch_height + 2 * half_height)) - half_height
            canvas[max(y, 0) : y + patch_height, max(x, 0) : x + patch_width] = 255


@dataclass(frozen=True, kw_only=True)
class Walks:
    """DeepFillv2's brush (arXiv:1806.03589, Algorithm 1): zigzag walks of one width each, mirrored by coins.

    Public ports, MAT's too, throw the mirrored picture away, so that their walks all lead to one side; here each is
    mirrored, which leaves the holes' sizes as they are.
    """

    count: tuple[int, int]
    """Fewest and most walks."""
    vertices: tuple[int, int]
    """Fewest and most steps of a walk."""
    width: tuple[int, int]
    """Thinnest and (never quite) thickest brush in pixels."""
    mean_angle: float = 2 * math.pi / 5
    """Steps go to this angle from the horizontal, up and down by turns, in radians."""
    angle_range: float = 2 * math.pi / 15
    """By how much a walk's angles may leave the mean, in radians."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:
        """Add the walks to the canvas, in place."""
        uniform = rng.random
        height, width = canvas.shape
        mean_step = math.hypot(height, width) / 8
        for _ in range(_between(uniform(), self.count)):
            low = self.mean_angle - uniform() * self.angle_range
            spread = self.mean_angle + uniform() * self.angle_range - low
            mirror_x, mirror_y = uniform() < 0.5, uniform() < 0.5
            x, y = int(uniform() * width), int(uniform() * height)
            walk = [x, y]
            rise = -1
            for _ in range(_between(uniform(), self.vertices)):
                angle = low + uniform() * spread
                length = mean_step * (1.0 + 0.5 * _normal(uniform(), uniform()))
                length = 0.0 if length < 0.0 else 2 * mean_step if length > 2 * mean_step else length
                x, y = int(x + length * math.cos(angle)), int(y + rise * length * math.sin(angle))
                x = width if x > width else x
                y = 0 if y < 0 else height if y > height else y
                walk += x, y
                rise = -rise
            thickness = int((self.width[0] + uniform() * (self.width[1] - self.width[0])) * scale) or 1
            vertices = np.array(walk, np.int32).reshape(-1, 2)
            if mirror_x:
                vertices[:, 0] = width - vertices[:, 0]
            if mirror_y:
                vertices[:, 1] = height - vertices[:, 1]
            cv2.polylines(canvas, [vertices], False, 255, thickness)


@dataclass(frozen=True, kw_only=True)
class Box:
    """DeepFill's box: one square anywhere inside the picture, cut by the same random amount at opposite sides."""

    side: int
    """Its side in pixels before it is cut."""
    cut: int
    """Most pixels that are cut at a side."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:
        """Add the box to the canvas, in place."""
        uniform = rng.random
        height, width = canvas.shape
        side, cut = int(self.side * scale), int(self.cut * scale)
        x, y = int(uniform() * (width - side + 1)), int(uniform() * (height - side + 1))
        cut_x, cut_y = int(uniform() * (cut + 1)), int(uniform() * (cut + 1))
        canvas[y + cut_y : y + side - cut_y, x + cut_x : x + side - cut_x] = 255


@dataclass(frozen=True, kw_only=True)
class Ellipses:
    """Filled ellipses, turned any way, whose centres lie inside the picture."""

    count: tuple[int, int]
    """Fewest and most ellipses."""
    axis: tuple[int, int]
    """Shortest and longest axis in pixels, from edge to edge; both axes are drawn apart."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:
        """Add the ellipses to the canvas, in place."""
        uniform = rng.random
        height, width = canvas.shape
        for _ in range(_between(uniform(), self.count)):
            centre = int(uniform() * width), int(uniform() * height)
            axes = tuple(int(_between(uniform(), self.axis) * scale / 2) or 1 for _ in range(2))
            cv2.ellipse(canvas, centre, axes, int(uniform() * 180), 0, 360, 255, cv2.FILLED)


@dataclass(frozen=True, kw_only=True)
class Center:
    """Context Encoder's hole: the block in the middle (arXiv:1604.07379)."""

    share: float = 0.5
    """Its sides as a share of the picture's."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:  # noqa: ARG002 (nothing is random)
        """Add the block to the canvas, in place."""
        height, width = canvas.shape
        hole_height, hole_width = int(height * self.share), int(width * self.share)
        y, x = (height - hole_height) // 2, (width - hole_width) // 2
        canvas[y : y + hole_height, x : x + hole_width] = 255


@runtime_checkable
class Mark(Protocol):
    """Whatever a family is made of: a config that draws itself on a canvas, in place."""

    def draw(self, canvas: MaskArray, rng: random.Random, scale: float) -> None:
        """Add to the canvas, in place."""
        ...


def _between(share: float, limits: tuple[int, int]) -> int:
    """A whole number of [low, high], both included, from a uniform number of [0, 1)."""
    low, high = limits
    return low + int(share * (high - low + 1))


def _normal(first: float, second: float) -> float:
    """A standard normal number from two uniform ones of [0, 1) (Box and Muller)."""
    return math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)
