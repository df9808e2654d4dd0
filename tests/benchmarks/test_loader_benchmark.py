"""The loader's benchmark runs on a handful of photos and says what each of its rows holds."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from inpaint_dist import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(importlib.import_module("benchmarks.report"), "RESULTS", tmp_path)
    return importlib.import_module("benchmarks.loader")


def test_every_row_is_timed_and_explained(benchmark: ModuleType, shards: Path, tmp_path: Path, capsys) -> None:
    words = ["--shards", str(shards), "--images", "11", "--rounds", "1", "--batch-size", "4", "--workers", "1"]
    assert cli.run(benchmark.main, words) == 0
    report = json.loads((tmp_path / "loader.json").read_text())
    times, context = report["figures"]["CPU microseconds an image"], report["context"]
    assert len(times) == 9 and min(times.values()) > 0
    assert set(times) == set(context["what_each_row_includes"]) == set(context["images_a_round"])
    assert set(context["images_a_round"].values()) == {11, 12}  # others read whole epochs, we whole batches
    assert report["figures"]["share of the decoder's limit"]["decoder alone"] == 1.0
    assert (context["samples"], context["pixels_of_a_side"], context["rounds"]) == (11, 32, 1)
    assert "webdataset as documented" in capsys.readouterr().out


def test_ratios_are_medians_of_the_rounds_own(benchmark: ModuleType) -> None:
    rows = {name.format(2): [2.0, 4.0, 6.0] for name in benchmark.INCLUDES}
    rows[benchmark.LIMIT], rows[benchmark.DOCUMENTED] = [1.0, 3.0, 3.0], [20.0, 8.0, 18.0]
    figures = benchmark.summary(rows, 2)
    assert figures["share of the decoder's limit"][benchmark.OURS] == 0.5
    assert figures["images for one of webdataset as documented"][benchmark.OURS] == 3.0
    assert figures["images for one of webdataset tuned"]["inpaint_dist, 2 threads"] == 1.0
    assert figures["images for one of a folder by OpenCV"][benchmark.OURS] == 1.0


def test_more_workers_than_shards_are_refused(benchmark: ModuleType, shards: Path, capsys) -> None:
    assert cli.run(benchmark.main, ["--shards", str(shards), "--workers", "9"]) != 0
    assert "--workers 9: webdataset needs a shard for each" in capsys.readouterr().err
