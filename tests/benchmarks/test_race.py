"""The race: equal time for all, trained once, scored on the same holes."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import race as module
from benchmarks import report
from benchmarks.quality import FILLS
from benchmarks.race import COSTS, RaceConfig, plan_of, plan_row, step_cost, train_row
from benchmarks.variants import MEND, ROWS, VARIANTS
from inpaint_dist.config import TrainConfig
from inpaint_dist.errors import UsageError
from inpaint_dist.models import PatchDiscriminatorConfig, UNetConfig
from inpaint_dist.recipes import RECIPES


@pytest.fixture
def tiny_row(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A row named tiny, which trains in milliseconds."""
    unet = RECIPES["unet"]
    row = replace(
        unet,
        generator=UNetConfig(channels=(4, 8)),
        discriminator=PatchDiscriminatorConfig(channels=(4, 8)),
        data=replace(unet.data, batch_size=2),
    )
    monkeypatch.setattr(module, "ROWS", {"tiny": row})
    return row


def a_race(shards: Path, tmp_path: Path) -> RaceConfig:
    for name, pixels in (("photos", (32, 40, 3)), ("masks", (32, 32))):
        (tmp_path / name).mkdir()
        for number in range(4):
            noise = np.random.RandomState(number).randint(0, 256, pixels).astype(np.uint8)
            picture = noise if name == "photos" else np.where(noise > 170, 255, 0).astype(np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), picture)
    return RaceConfig(
        shards=shards,
        photos=tmp_path / "photos",
        masks=tmp_path / "masks",
        rows=("tiny",),
        minutes=0.1,
        metrics=("psnr", "hole_l1"),
        work=tmp_path / "race",
    )


def test_a_row_trains_once_for_the_steps_that_its_time_holds_and_is_scored_beside_what_learned_nothing(
    shards: Path, tmp_path: Path, tiny_row: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    race = a_race(shards, tmp_path)
    monkeypatch.setattr(module, "step_cost", lambda config: (race.seconds / 21, 7, "bf16"))
    plan_row(race, "tiny")
    assert "seconds" not in json.loads(plan_of(race, "tiny").read_text())
    train_row(race, "tiny")
    told = json.loads(plan_of(race, "tiny").read_text())
    assert told["steps"] == 21 and told["parameters"] == 7 and told["seconds"] > 0
    steps = [json.loads(line)["step"] for line in (race.work / "tiny/history.jsonl").read_text().splitlines()]
    assert steps[-1] == 21
    monkeypatch.setattr(module, "train", lambda config: pytest.fail("trained a second time"))
    with pytest.raises(UsageError, match="is of another minutes, recipe; name another --work"):
        plan_row(replace(race, minutes=0.2, seed=1), "tiny")
    monkeypatch.setattr(module, "step_cost", lambda config: pytest.fail("measured a second time"))
    plan_row(race, "tiny")
    train_row(race, "tiny")

    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    flags = {"shards": race.shards, "photos": race.photos, "masks": race.masks, "work": race.work}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    monkeypatch.setattr(module, "in_processes", lambda work, race: work(race, "tiny"))
    words += ["--rows", "tiny", "--minutes", "0.1", "--metrics", "psnr", "hole_l1", "--curves"]
    assert module.main([*words, str(tmp_path / "curves.png"), "--sheet", str(tmp_path / "sheet.jpg")]) == 0
    assert all(cv2.imread(str(tmp_path / name)) is not None for name in ("curves.png", "sheet.jpg"))
    written = json.loads((tmp_path / "results" / "race.json").read_text())
    progress = written["figures"]["tiny"].pop("progress")
    assert [point["minutes"] for point in progress] == pytest.approx(
        [0.1 * step / 21 for step in (4, 8, 12, 16, 21)], abs=1e-3
    )
    assert {key: progress[-1][key] for key in ("psnr", "hole_l1")} == {
        key: written["figures"]["tiny"]["all"][key] for key in ("psnr", "hole_l1")
    }
    assert len({point["psnr"]["mean"] for point in progress}) == 5
    assert written["figures"].keys() == {"tiny", *FILLS}
    assert all(about["all"]["photos"] == 4 for about in written["figures"].values())
    assert written["context"]["training"] == {
        "tiny": {name: told[name] for name in COSTS} | {"masks": "paired", "flip": True, "rates": "tail", "batch": 2}
    }


def test_a_row_that_was_killed_goes_on_and_tells_the_seconds_of_all_its_sittings(
    shards: Path, tmp_path: Path, tiny_row: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    race = a_race(shards, tmp_path)
    monkeypatch.setattr(module, "step_cost", lambda config: (race.seconds / 10, 7, "bf16"))
    plan_row(race, "tiny")
    plan = json.loads(plan_of(race, "tiny").read_text())
    # As a sitting that was killed leaves it: half the steps, and what the last note said.
    module.train(replace(module.config_of(race, "tiny"), max_steps=5, checkpoint_every=1))
    plan_of(race, "tiny").write_text(json.dumps(plan | {"seconds": 1000.0, "done": False}))
    monkeypatch.setattr(module, "TALLY_EVERY", 0.001)
    train_row(race, "tiny")
    told = json.loads(plan_of(race, "tiny").read_text())
    assert 1000 < told["seconds"] < 1100 and told["done"] is True
    steps = [json.loads(line)["step"] for line in (race.work / "tiny/history.jsonl").read_text().splitlines()]
    assert steps == sorted({*steps}) and steps[-1] == 10


def test_a_rows_cost_is_that_of_its_median_step(shards: Path, tiny_row: TrainConfig):
    config = replace(tiny_row, data=replace(tiny_row.data, shards=str(shards), workers=0))
    cost, parameters, precision = step_cost(config)
    assert cost > 0 and precision in ("no", "bf16")
    assert parameters == sum(p.numel() for p in tiny_row.generator.build().parameters())


def test_every_variant_differs_from_mend_and_carries_a_name_of_its_own():
    assert len(VARIANTS) >= 10
    assert all(name.startswith("mend/") and variant != MEND for name, variant in VARIANTS.items())
    assert ROWS.keys() == RECIPES.keys() | VARIANTS.keys()


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"rows": ("none",)}, "--rows none"),
        ({"metrics": ("beauty",)}, "--metrics beauty"),
        ({"minutes": 0.0}, r"--minutes 0\.0"),
        ({"at_once": 0}, "--at-once 0"),
        ({"points": 3}, "--points 3"),
        ({"points": 0}, "--points 0"),
        ({"curves": Path("c.jpg")}, r"--curves c\.jpg"),
        ({"sheet": Path("s.gif")}, r"--sheet s\.gif"),
    ],
)
def test_a_race_that_cannot_be_run_is_refused(settings: dict, flag: str):
    with pytest.raises(UsageError, match=flag):
        RaceConfig(shards=Path("s"), photos=Path("p"), masks=Path("m"), **settings)
