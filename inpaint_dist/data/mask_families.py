"""Mask families: named laws that draw random holes, as the field's papers train and score on them, and one's own.

A family is called by name (`lama-train`), by name with parameters (`ellipses:count=1-5,axis=20-90`), by a folder of
segmentations (`objects:FOLDER,share=0.2-0.6`), or as a mixture of these by weight (`3*lama-train+1*objects:FOLDER`);
so that a folder's name may hold no `+` and no comma. The words as they are given are a part of each mask's key.
A new family is one entry of FAMILIES.
"""

import dataclasses
import difflib
import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from inpaint_dist.data.marks import (
    Box,
    Boxes,
    Center,
    Ellipses,
    Mark,
    MaskArray,
    Patches,
    Strokes,
    Walks,
)
from inpaint_dist.data.object_shapes import Objects
from inpaint_dist.data.opencv import cv2
from inpaint_dist.errors import UserError

BASE_SIDE = 256
"""The side in pixels at which the laws' numbers are published."""

_TRIES = 64  # of a mixture's part to keep below its own largest hole
_WITH_PARAMETERS = ("boxes", "strokes", "ellipses")
_OBJECTS = "objects:"
_GIVEN = ("files", "sources")  # what its folder gives to Objects
_WEIGHTED = re.compile(r"(?:(\d+\.?\d*)\*)?(.+)")
_PARAMETER = re.compile(r"([a-z]+(?:[_-][a-z]+)*)=(\d+\.?\d*)(?:-(\d+\.?\d*))?")


@dataclass(frozen=True, kw_only=True)
class MaskFamily:
    """A law of masks: the marks that are drawn over one another, or another set of marks now and then."""

    marks: tuple[Mark, ...]
    """Drawn in this order on an empty canvas."""
    or_marks: tuple[Mark, ...] = ()
    """Drawn in place of `marks`, with the chance `or_chance`."""
    or_chance: float = 0.0
    """How often `or_marks` take the place of `marks`, 0..1."""
    largest: float = 1.0
    """A mask whose hole is a larger share of the picture is drawn anew."""

    def draw(self, height: int, width: int, rng: random.Random) -> MaskArray:
        """One mask by the law alone; it may be empty or larger than `largest`."""
        canvas = np.zeros((height, width), np.uint8)
        scale = min(height, width) / BASE_SIDE
        for mark in self.or_marks if self.or_chance and rng.random() < self.or_chance else self.marks:
            mark.draw(canvas, rng, scale)
        return canvas


# LaMa passes its max_times on with one added: "1 to 5 strokes" are 1 to 6. Its configs weigh boxes against strokes.
# MAT's counts are those of its 256 px laws.
FAMILIES: Mapping[str, MaskFamily] = {
    "lama-train": MaskFamily(
        marks=(Strokes(count=(1, 6), max_len=200, max_width=100),),
        or_marks=(Boxes(count=(1, 4), side=(30, 150), margin=10),),
        or_chance=1 / 2,
    ),
    "lama-thin": MaskFamily(marks=(Strokes(count=(4, 51), max_len=40, max_width=10),), largest=0.5),
    "lama-medium": MaskFamily(
        marks=(Strokes(count=(4, 6), max_len=100, max_width=50),),
        or_marks=(Boxes(count=(1, 5), side=(10, 50), margin=0),),
        or_chance=0.3 / 1.3,
    ),
    "lama-thick": MaskFamily(
        marks=(Strokes(count=(1, 6), max_len=200, max_width=100),),
        or_marks=(Boxes(count=(1, 3), side=(30, 150), margin=10),),
        or_chance=0.3 / 1.3,
    ),
    "mat-small": MaskFamily(
        marks=(
            Patches(most=1, share=1 / 2),
            Patches(most=1, share=1.0),
            Walks(count=(0, 2), vertices=(4, 17), width=(12, 48)),
        )
    ),
    "mat-large": MaskFamily(
        marks=(
            Patches(most=3, share=1 / 2),
            Patches(most=1, share=1.0),
            Walks(count=(0, 7), vertices=(4, 17), width=(12, 48)),
        )
    ),
    "deepfill": MaskFamily(
        marks=(Box(side=128, cut=16), Walks(count=(1, 3), vertices=(4, 11), width=(12, 40))),
    ),
    "center": MaskFamily(marks=(Center(),)),
    "boxes": MaskFamily(marks=(Boxes(count=(1, 4), side=(30, 150), margin=0),)),
    "strokes": MaskFamily(marks=(Strokes(count=(1, 6), max_len=120, max_width=40),)),
    "ellipses": MaskFamily(marks=(Ellipses(count=(1, 5), axis=(30, 150)),)),
}
"""Name → law. Published as LaMa's training mix and its three evaluation sets, MAT's small and large free form,
DeepFillv2's training masks, and Context Encoder's central block. The last three are ours, for one's own parameters."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """One of several families for each mask, by weight."""

    families: tuple[MaskFamily, ...]
    """What is chosen from."""
    weights: tuple[float, ...]
    """How often each is chosen, to the sum of all."""

    @property
    def largest(self) -> float:
        """The largest share of the picture that any of them may leave open."""
        return max(family.largest for family in self.families)

    def draw(self, height: int, width: int, rng: random.Random) -> MaskArray:
        """One mask of one of the families."""
        sums = list(accumulate(self.weights))
        point = rng.random() * sums[-1]
        family = next(family for family, end in zip(self.families, sums, strict=True) if point < end)
        most = family.largest * height * width
        mask = family.draw(height, width, rng)
        for _ in range(_TRIES):
            if cv2.countNonZero(mask) <= most:
                break
            mask = family.draw(height, width, rng)
        return mask


Law: TypeAlias = MaskFamily | Mixture


def find_family(name: str) -> Law:
    """The family of this name, with parameters or mixed as it says.

    Raises:
        UserError: there is none; the message lists them all and the one that may have been meant. Or a parameter that
            it does not have, a value that cannot be, a folder without a picture.
    """
    return FAMILIES[name] if name in FAMILIES else _parse(name)


@functools.lru_cache(maxsize=64)
def _parse(name: str) -> Law:
    matches = [_WEIGHTED.fullmatch(part) for part in name.split("+")]
    parts = [(float(match[1] or 1), _single(match[2])) for match in matches if match is not None]
    if len(parts) < len(matches):
        raise UserError(f"Mask family {name!r}: a name is missing beside a +. Such as 3*lama-train+1*ellipses.")
    if len(parts) == 1:
        return parts[0][1]
    if not sum(weight for weight, _ in parts) > 0:
        raise UserError(f"Mask family {name!r}: all weights are 0. Such as 3*lama-train+1*ellipses.")
    return Mixture(families=tuple(family for _, family in parts), weights=tuple(weight for weight, _ in parts))


def _single(name: str) -> MaskFamily:
    """A family that is no mixture."""
    if name in FAMILIES:
        return FAMILIES[name]
    if name.startswith(_OBJECTS):
        folder, *words = name.removeprefix(_OBJECTS).split(",")
        return MaskFamily(marks=(_changed(name, Objects.of(folder), words),))
    plain, colon, words = name.partition(":")
    if not colon or plain not in _WITH_PARAMETERS:
        raise UserError(_unknown(name))
    mark = FAMILIES[plain].marks[0]
    return MaskFamily(marks=(_changed(name, mark, words.split(",")),))


def _changed(name: str, mark: Mark, words: list[str]) -> Mark:
    """A mark with the parameters that the words give."""
    assert dataclasses.is_dataclass(mark)
    assert not isinstance(mark, type)
    allowed: dict[str, Any] = {
        field.name: getattr(mark, field.name) for field in dataclasses.fields(mark) if field.name not in _GIVEN
    }
    changes: dict[str, Any] = {}
    for word in words:
        match = _PARAMETER.fullmatch(word)
        field = match[1].replace("-", "_") if match else ""
        if match is None or field not in allowed:
            known = ", ".join(f"{key.replace('_', '-')}={_written(value)}" for key, value in allowed.items())
            raise UserError(f"Mask family {name!r}: {word!r} is no parameter of it. It has {known}.")
        changes[field] = _value(name, word, allowed[field], match[2], match[3])
    return dataclasses.replace(mark, **changes)


def _value(name: str, word: str, default: Any, low: str, high: str | None) -> Any:
    """What a parameter's words say, in the type of its default."""
    is_range = isinstance(default, tuple)
    kind = type(default[0] if is_range else default)
    try:
        first, last = kind(low), kind(high or low)
    except ValueError:
        raise UserError(f"Mask family {name!r}: {word!r} takes whole numbers.") from None
    if first > last or (high and not is_range):
        raise UserError(f"Mask family {name!r}: {word!r} takes {'LOW-HIGH' if is_range else 'one number'}.")
    if kind is float and last > 1:
        raise UserError(f"Mask family {name!r}: {word!r} is a share: from 0 to 1.")
    if last == 0 and not word.startswith("margin"):
        raise UserError(f"Mask family {name!r}: {word!r} draws nothing.")
    return (first, last) if is_range else first


def _written(value: Any) -> str:
    return f"{value[0]:g}-{value[1]:g}" if isinstance(value, tuple) else f"{value:g}"


def _unknown(name: str) -> str:
    plain = name.partition(":")[0]
    close = difflib.get_close_matches(plain.lower().replace("_", "-"), FAMILIES, n=1)
    hint = f" Did you mean {close[0]}?" if close and close[0] != plain else ""
    return (
        f"No mask family is called {name!r}.{hint} --family takes one of: {', '.join(FAMILIES)}, objects:FOLDER; "
        f"{', '.join(_WITH_PARAMETERS)} with parameters, such as ellipses:count=1-5; or a mixture, such as "
        "3*lama-train+1*ellipses."
    )
