"""Masks per CPU-second: each family drawn at 256 and 512, against reading a stored 1-bit mask. One thread.

python -m benchmarks.masks
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from benchmarks.report import interleaved, write_report
from inpaint_dist.data.masks import FAMILIES, draw_mask, mask_rng
from inpaint_dist.data.packed_masks import decode_packed_mask, encode_mask

COUNT = 200
ROUNDS = 9
SIZES = (256, 512)


def main() -> None:
    cv2.setNumThreads(1)
    work = {f"{name} at {size}": run for size in SIZES for name, run in work_at(size).items()}
    figures = {name: round(COUNT / seconds) for name, seconds in interleaved(ROUNDS, work).items()}
    print("masks per CPU-second")
    for name, rate in figures.items():
        print(f"  {name:<26}{rate:>9,}")
    write_report("masks", figures, unit="masks per CPU-second", masks_a_round=COUNT, rounds=ROUNDS, threads=1)


def work_at(size: int) -> dict[str, Callable[[], None]]:
    """What is timed, COUNT masks each; drawing includes the generator that a mask's key gives."""
    masks = [draw_mask("lama-train", size, size, mask_rng(index)) for index in range(COUNT)]
    stored = [encode_mask(mask) for mask in masks]

    def draw(family: str) -> None:
        for index in range(COUNT):
            draw_mask(family, size, size, mask_rng(family, size, 0, index))

    def make_generators() -> None:
        for index in range(COUNT):
            mask_rng("lama-train", size, 0, index)

    def encode() -> None:
        for mask in masks:
            encode_mask(mask)

    def read_packed_bits() -> None:
        for data in stored:
            decode_packed_mask(data, "stored")

    def read_with_opencv() -> None:
        for data in stored:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)

    return {
        **{f"draw {family}": partial(draw, family) for family in FAMILIES},
        "generator alone": make_generators,
        "encode lama-train": encode,
        "read packed bits": read_packed_bits,
        "read with OpenCV": read_with_opencv,
    }


if __name__ == "__main__":
    main()
