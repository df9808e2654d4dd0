"""Small sets of photos and masks for the tools that make shards."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from inpaint_dist.data.sharding import ShardingConfig


class PhotosAndMasks(NamedTuple):
    photos: Path
    masks: Path

    def config(self, out: Path, **options) -> ShardingConfig:
        """Eight shards of at most 3 photos, one photo broken."""
        options = {"size": 32, "workers": 1, "val_fraction": 0.25, "samples_per_shard": 3, **options}
        return ShardingConfig(photos=(str(self.photos),), masks=(str(self.masks),), out=out, **options)

    def words(self, out: Path, *more: str) -> list[str]:
        """The same as flags."""
        return [
            *(str(self.photos), "--masks", str(self.masks), "--out", str(out), "--size", "32", "--workers", "1"),
            *("--val-fraction", "0.25", "--samples-per-shard", "3", *more),
        ]


@pytest.fixture(scope="session")
def photos_and_masks(tmp_path_factory: pytest.TempPathFactory) -> PhotosAndMasks:
    root = tmp_path_factory.mktemp("small")
    y, x = np.mgrid[0:40, 0:56].astype(np.uint8)
    for folder in ("photos/deep", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(20):
        place = "photos/deep" if number % 3 else "photos"
        cv2.imwrite(str(root / place / f"{number:02d}.jpg"), np.dstack([x * 4, y * 5, np.full_like(x, number * 12)]))
    (root / "photos/broken.jpg").write_bytes((root / "photos/00.jpg").read_bytes()[:-99])
    for number in range(5):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:12, number * 5 : number * 5 + 8 if number else 0] = 255
        cv2.imwrite(str(root / f"masks/{number}.png"), mask)
    return PhotosAndMasks(root / "photos", root / "masks")
