"""What several tests stand on: small shards, and training run in this process."""

import signal
from collections.abc import Callable, Generator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from inpaint_dist import train
from inpaint_dist.data.mask_sets import MaskSetConfig, make_masks
from inpaint_dist.data.sharding import ShardingConfig, make_shards
from inpaint_dist.losses.perceptual import VGG16Features
from inpaint_dist.recipes import RECIPES

SIZE = 32
TINY = ("--generator.channels", "4", "8", "--discriminator.channels", "4", "8", "--report-to", "none", "--threads", "1")
QUIET = TINY[6:]
SMALL_D = TINY[3:6]
TINY_OF = {
    "lama": ("--generator.base-channels", "2", "--generator.blocks", "1"),
    "lama-small": ("--generator.base-channels", "2", "--generator.blocks", "1"),
    "big-lama": ("--generator.base-channels", "2", "--generator.blocks", "1"),
    "context-encoder": tuple(f"--generator.size {SIZE} --generator.channels 4 8 --generator.bottleneck 8".split()),
    "deepfillv2": tuple("--generator.base-channels 4 --generator.dilations 2 --discriminator.halvings 2".split()),
    "aot-gan": tuple("--generator.base-channels 4 --generator.blocks 1 --discriminator.halvings 2".split()),
    "mi-gan": tuple("--generator.channels 4 8".split()),
}
"""Flags of the recipes whose networks have other settings than channels."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What is not about GPUs knows of none, and runs on the CPU wherever it runs."""
    if item.get_closest_marker("gpu"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return (yield)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bit-for-bit promises hold at equal threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background job ignores Ctrl-C, and so would all processes that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def write_photos(folder: Path, count: int, size: int = SIZE) -> Path:
    """Smooth colourful photos, each its own."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:size, 0:size] / size
    for number in range(count):
        waves = [127 + 120 * np.sin(6 * (x * (number + 1) + y * channel) + number) for channel in (1, 2, 3)]
        cv2.imwrite(str(folder / f"photo_{number:02d}.png"), np.stack(waves, axis=2).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 training and 5 validation photos of 32 pixels in shards of 4."""
    root = tmp_path_factory.mktemp("shards")
    make_masks(MaskSetConfig(out=root / "masks", count=7, size=SIZE, workers=1))
    make_shards(
        ShardingConfig(
            photos=(str(write_photos(root / "photos", 11)),),
            val=(str(write_photos(root / "val", 5)),),
            masks=(str(root / "masks"),),
            out=root / "shards",
            size=SIZE,
            samples_per_shard=4,
            masks_per_photo=2,
            workers=1,
        )
    )
    return root / "shards"


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Flags of networks that train in milliseconds, alone."""
    return TINY


@pytest.fixture(scope="session")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights as torchvision's VGG16 has them, in name and shape; the numbers are noise."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(VGG16Features(("relu4_3",)).state_dict(), path)
    return path


@pytest.fixture
def run_train(shards: Path, vgg16: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train tiny networks on the small shards; returns the run folder."""

    def run(*flags: str, recipe: str = "unet", name: str = "run") -> Path:
        small = (*TINY_OF[recipe], *SMALL_D, *QUIET) if recipe in TINY_OF else TINY
        if RECIPES[recipe].objective.looks_at_features:
            small = (*small, "--objective.perceptual.weights", str(vgg16), "--objective.perceptual.layers", "relu1_2")
        train.main([recipe, "--shards", str(shards), "--output-dir", str(tmp_path / name), *small, *flags])
        return tmp_path / name

    return run
