"""What a checkpoint costs the loop: the benchmark counts what it says."""

import json
from pathlib import Path

import pytest

from benchmarks import report, saving
from inpaint_dist.errors import UsageError


def test_each_recipe_is_saved_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert saving.main(["--recipe", "unet", "--rounds", "1"]) == 0
    (told,) = json.loads((tmp_path / "saving.json").read_text())["figures"].values()
    assert 30 < told["megabytes"] < 100 and 0 < told["share that the loop waits for"] < 1
    with pytest.raises(UsageError, match="--recipe lame: choose of"):
        saving.SavingBenchmark(recipe=("lame",))
