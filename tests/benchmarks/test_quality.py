"""Scoring systems on photos: paired, by hole bucket, the same masks each time."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from inpaint_dist import cli
from inpaint_dist.models import UNetConfig
from inpaint_dist.weights import GENERATOR, export_generator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/ is no part of the package: the repository's root has to be on the path."""
    monkeypatch.syspath_prepend(str(ROOT))
    report = importlib.import_module("benchmarks.report")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return importlib.import_module("benchmarks.quality")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven photos of odd sizes, three masks of which one has no hole, and an untrained unet, which is push-pull."""
    y, x = np.mgrid[0:40, 0:50]
    for name in ("photos", "masks", "run"):
        (tmp_path / name).mkdir()
    for number in range(7):
        waves = [127 + 90 * np.sin((x * (number + 1) + y * channel) / 7) for channel in (1, 2, 3)]
        cv2.imwrite(str(tmp_path / "photos" / f"p{number}.png"), np.stack(waves, axis=2).astype(np.uint8))
    for number, side in enumerate((0, 10, 30)):
        mask = np.zeros((40, 40), np.uint8)
        mask[2 : 2 + side, 3 : 3 + side] = 255
        cv2.imwrite(str(tmp_path / "masks" / f"m{number}.png"), mask)
    config = UNetConfig(channels=(4, 8))
    export_generator(tmp_path / "run" / GENERATOR, config, config.build().state_dict(), recipe="unet", step=3)
    return tmp_path


def run(quality: ModuleType, folder: Path, *flags: str) -> dict:
    places = ["--photos", str(folder / "photos"), "--masks", str(folder / "masks"), "--size", "32", "--cpu"]
    assert cli.run(quality.main, [*places, *flags]) == 0
    return json.loads((folder / "results" / "quality.json").read_text())


def test_an_untrained_unet_scores_as_push_pull_does(quality: ModuleType, folder: Path) -> None:
    sheet = folder / "new" / "sheet.png"
    told = run(
        quality,
        folder,
        "--runs",
        f"ours={folder / 'run'}",
        "--sheet",
        str(sheet),
        "--sheet-photos",
        "2",
        "--sheet-systems",
        "ours",
    )
    whole = {name: about["all"] for name, about in told["figures"].items()}
    assert set(whole) == {"ours", "push-pull", "nearest pixel", "mixed", "telea", "navier-stokes"}
    assert whole["ours"] == whole["push-pull"]
    assert whole["ours"]["difference to push-pull"]["psnr"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    apart = whole["telea"]["difference to push-pull"]["psnr"]
    means = [whole[name]["psnr"]["mean"] for name in ("telea", "push-pull")]
    assert apart["mean"] == pytest.approx(means[0] - means[1], abs=2e-5) and apart["low"] < apart["mean"]
    assert told["context"]["runs"]["ours"] == {
        "network": "UNetConfig",
        "recipe": "unet",
        "step": "3",
        "weights": "latest",
    }
    assert str(folder) not in json.dumps(told)
    drawn = cv2.imread(str(sheet))
    assert drawn is not None and drawn.shape == (3 * (20 + 32), 2 * 32, 3)


def test_buckets_hold_every_photo_once(quality: ModuleType, folder: Path) -> None:
    telea = run(quality, folder)["figures"]["telea"]
    whole, buckets = telea.pop("all"), telea
    assert whole["photos"] == 7 == sum(bucket["photos"] for bucket in buckets.values())
    assert set(buckets) == {"0.0-0.1", "0.5-0.6"}
    mean = sum(bucket["photos"] * bucket["psnr"]["mean"] for bucket in buckets.values()) / 7
    assert mean == pytest.approx(whole["psnr"]["mean"], abs=1e-4)


def test_the_table_lists_the_best_first(quality: ModuleType) -> None:
    figures = {
        name: {"all": {"psnr": {"mean": db, "low": db - 1, "high": db + 1}}} for name, db in (("a", 2), ("b", 3))
    }
    assert [line.split()[0] for line in quality.table(figures, ("psnr",))[1:]] == ["b", "a"]


def test_a_photo_keeps_its_mask_when_others_join_or_leave(quality: ModuleType, folder: Path) -> None:
    config = quality.QualityConfig(photos=folder / "photos", masks=folder / "masks", size=32)
    few = quality.QualityConfig(photos=folder / "photos", masks=folder / "masks", size=32, limit=3)
    whole, chosen = quality.open_photos(config), quality.open_photos(few)
    every = {photo.path: photo for photo in whole.photos}
    assert len(chosen) == 3
    for photo in chosen.photos:
        assert np.array_equal(chosen.read(photo)[1], whole.read(every[photo.path])[1])


def test_masks_of_the_same_name_are_told_where_they_are_missing(quality: ModuleType, folder: Path, capsys) -> None:
    words = ["--photos", str(folder / "photos"), "--masks", str(folder / "masks"), "--pairing", "name"]
    assert cli.run(quality.main, words) == 1
    assert "p0.png: no mask has its name" in capsys.readouterr().err


def test_the_interval_holds_the_mean_and_narrows_with_more_photos(quality: ModuleType) -> None:
    few = np.stack([np.arange(20.0) - 9.5, np.ones(20)], axis=1)
    low, high = quality.bootstrap_interval(few)
    # the mean of 20 has a standard error of 5.77 / sqrt(20) = 1.29
    assert low[0] == pytest.approx(-2.5, abs=0.3)
    assert high[0] == pytest.approx(2.5, abs=0.3)
    assert (low[1], high[1]) == (1.0, 1.0)
    lower, higher = quality.bootstrap_interval(np.tile(few, (16, 1)))
    assert higher[0] - lower[0] == pytest.approx((high[0] - low[0]) / 4, rel=0.15)
    assert np.array_equal(quality.bootstrap_interval(few), (low, high))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "give --photos and --masks, or --shards"),
        ({"photos": Path("p")}, "give --photos and --masks"),
        ({"shards": Path("s"), "runs": ("unet",)}, "give NAME=RUN"),
        ({"shards": Path("s"), "runs": ("telea=r",)}, "have to differ"),
        ({"shards": Path("s"), "runs": ("a=r", "a=s")}, "have to differ"),
        ({"shards": Path("s"), "limit": 0}, "--limit 0"),
        ({"shards": Path("s"), "metrics": ("beauty",)}, "--metrics beauty"),
        ({"shards": Path("s"), "metrics": ()}, "--metrics"),
        ({"shards": Path("s"), "sheet": Path("s.gif")}, "--sheet s.gif"),
        ({"shards": Path("s"), "sheet_systems": ("unet",)}, "--sheet-systems unet"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(quality: ModuleType, settings: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        quality.QualityConfig(**settings)


def test_a_size_that_a_generator_cannot_take_is_told(quality: ModuleType, folder: Path, capsys) -> None:
    words = ["--photos", str(folder / "photos"), "--masks", str(folder / "masks"), "--size", "30"]
    assert cli.run(quality.main, [*words, "--runs", f"ours={folder / 'run'}"]) == 1
    assert "--size 30: ours takes multiples of 4" in capsys.readouterr().err
