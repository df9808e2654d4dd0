"""Training end to end, on small shards with tiny networks."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from inpaint_dist import checkpoint, evaluation, train
from inpaint_dist import run as run_module
from inpaint_dist.data.loader import ValidationSet
from inpaint_dist.data.mask_sets import MaskSetConfig, make_masks
from inpaint_dist.data.sharding import ShardingConfig, make_shards
from inpaint_dist.data.sources import Sources
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.launch import Launch
from inpaint_dist.metrics import learned
from inpaint_dist.models import FeatureDiscriminatorConfig, UNetConfig
from inpaint_dist.recipes import RECIPES
from inpaint_dist.weights import read_generator

Runner = Callable[..., Path]
ROOT = Path(__file__).parents[1]


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def checkpoint_digest(run: Path, step: int) -> dict[str, str]:
    manifest = json.loads((run / "checkpoints" / f"step-{step:07d}" / "MANIFEST.json").read_text())
    return {name: file["sha256"] for name, file in manifest["files"].items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_leaves_a_whole_run_folder(recipe: str, precision: str, run_train: Runner):
    flags = ("--max-steps", "4", "--report-every", "2", "--batch-size", "2", "--mixed-precision", precision)
    run = run_train(*flags, recipe=recipe)
    assert [row["step"] for row in history(run)] == [1, 2, 3, 4]
    last = history(run)[-1]
    assert last.keys() >= {"g/loss", "g/reconstruction", "g/adversarial", "d/loss", "d/real", "d/fake", "val/psnr"}
    assert last.keys() >= {
        "d/accuracy_real",
        "d/accuracy_fake",
        "health/sharpness",
        "health/border",
        "norm/g",
        "norm/d",
    }
    assert last.keys() >= {"grad/reconstruction", "grad/adversarial", "images_per_second", "data_wait", "lr"}
    for name in ("config.json", "command.txt", "env.json", "log.txt", "README.md", "generator-best.safetensors"):
        assert (run / name).stat().st_size > 0
    assert cv2.imread(str(run / "plots/losses.png")) is not None
    assert cv2.imread(str(run / "samples/step-0000004.png")).shape[1] > 4 * 32
    config, weights, about = read_generator(run)
    assert type(config) is type(RECIPES[recipe].generator) and about["step"] == "4" and about["recipe"] == recipe
    ema = load_file(run / "checkpoints/step-0000004/ema.safetensors")
    assert all(torch.equal(weights[name], ema[name]) for name in ema)
    config_then, weights_then, about_then = read_generator(run / "checkpoints/step-0000004")
    assert (config_then, about_then["step"], about_then["recipe"]) == (config, "4", recipe)
    assert weights_then.keys() == weights.keys() and all(torch.equal(weights_then[name], ema[name]) for name in ema)
    with pytest.raises(UserError, match=r"step-0000004/generator.safetensors: .*; give .*step-0000004, whose averaged"):
        read_generator(run / "checkpoints/step-0000004/generator.safetensors")
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config.json: does not say which generator step-0000004 is of"):
        read_generator(run / "checkpoints/step-0000004")


def test_epochs_become_steps_and_the_last_one_is_saved(run_train: Runner):
    run = run_train("--epochs", "3", "--batch-size", "4", "--checkpoint-every", "100")
    assert (run / "checkpoints/step-0000009").is_dir()  # ceil(3 x 11 / 4)
    assert history(run)[-1]["step"] == 9


def command(shards: Path, run: Path, *flags: str) -> list[str]:
    place = ["--shards", str(shards), "--output-dir", str(run)]
    return [sys.executable, "-m", "inpaint_dist.train", "unet", *place, *flags]


def test_a_run_killed_with_9_and_continued_by_the_same_command_ends_in_the_same_bits(
    shards: Path, tmp_path: Path, tiny: tuple[str, ...]
):
    flags = ("--max-steps", "40", "--checkpoint-every", "20", "--eval-every", "40", "--batch-size", "2")
    flags += ("--sample-every", "40", "--report-every", "1", *tiny)
    subprocess.run(command(shards, tmp_path / "whole", *flags), check=True, capture_output=True, cwd=ROOT)
    broken = command(shards, tmp_path / "broken", *flags)
    process = subprocess.Popen(broken, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 120
    log = tmp_path / "broken/history.jsonl"
    while time.monotonic() < deadline and not (
        (tmp_path / "broken/checkpoints/step-0000020").is_dir() and len(log.read_text().splitlines()) > 21
    ):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "broken/checkpoints/step-0000040").exists(), "killed too late to show anything"
    again = subprocess.run(broken, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "going on from" in again.stdout + again.stderr
    assert checkpoint_digest(tmp_path / "whole", 40) == checkpoint_digest(tmp_path / "broken", 40)
    timing = ("images_per_second", "data_wait", "eta_seconds")
    rows = [
        [{k: v for k, v in row.items() if k not in timing} for row in history(tmp_path / name)]
        for name in ("whole", "broken")
    ]
    assert rows[0] == rows[1]


def said_of_health(run: Path) -> list[str]:
    lines = (run / "log.txt").read_text().splitlines()
    return [line.split(" ", 2)[2] for line in lines if " health: " in line]


def test_health_is_told_in_the_log_and_a_resumed_run_tells_what_an_unbroken_one_does(run_train: Runner):
    """Untrained transposed convolutions show a grid from step 1 on: the second part says so, and since when."""
    same = ("--report-every", "1", "--eval-every", "99", "--sample-every", "99", "--checkpoint-every", "4")
    whole = run_train("--max-steps", "12", *same, recipe="seed", name="whole")
    expected = said_of_health(whole)
    assert len([line for line in expected if "a grid of 2 or 4 pixels in the holes since step 1 (" in line]) == 1, (
        expected
    )
    for stop in ("4", "12"):
        parts = run_train("--max-steps", stop, *same, recipe="seed", name="parts")
    assert said_of_health(parts) == expected
    states = [json.loads((run / "checkpoints/step-0000012/state.json").read_text()) for run in (whole, parts)]
    assert states[0]["health"] == states[1]["health"]
    assert states[0]["health"]["averages"]["health/sharpness"][1] == 12


def test_a_complete_run_is_left_alone_and_says_what_can_be_done(run_train: Runner, capsys):
    run = run_train("--max-steps", "2")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    run_train("--max-steps", "2")
    said = capsys.readouterr().out
    assert "complete" in said and "--overwrite" in said and "--output-dir" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_another_run_in_the_folder_is_refused_with_the_differing_keys_and_replaced_on_demand(run_train: Runner):
    run = run_train("--max-steps", "2")
    with pytest.raises(UsageError, match="--overwrite") as refused:
        run_train("--max-steps", "2", "--seed", "1", "--lr", "0.01", "--batch-size", "4", "--limit", "9")
    for words in (
        "--seed: then 0, now 1",
        "--lr: then 0.001, now 0.01",
        "give --global-batch-size 8",
        "other training",
    ):
        assert words in str(refused.value)
    run_train("--max-steps", "1", "--seed", "1", "--overwrite")
    assert [row["step"] for row in history(run)] == [1]


def test_a_run_goes_on_where_the_weights_of_vgg16_lie_elsewhere(run_train: Runner, vgg16: Path, tmp_path: Path):
    flags = ("--objective.perceptual-weight", "0.1", "--objective.perceptual.layers", "relu1_2")
    run_train("--max-steps", "1", *flags, "--objective.perceptual.weights", str(vgg16))
    moved = tmp_path / "elsewhere.pth"
    shutil.copy(vgg16, moved)
    run = run_train("--max-steps", "2", *flags, "--objective.perceptual.weights", str(moved))
    assert [row["step"] for row in history(run)] == [1, 2]


@pytest.mark.parametrize("name", ["precious.txt", "config.json"])
def test_files_that_are_no_run_are_never_removed(run_train: Runner, tmp_path: Path, name: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"model": "mine"}')
    for flags in ((), ("--overwrite",)):
        with pytest.raises(UsageError, match="no run"):
            run_train("--max-steps", "1", *flags)
    assert (tmp_path / "run" / name).read_text() == '{"model": "mine"}'


def test_what_others_put_into_a_run_folder_stays_when_the_run_is_replaced(run_train: Runner):
    run = run_train("--max-steps", "1")
    (run / "notes.txt").write_text("mine")
    run_train("--max-steps", "2", "--overwrite")
    assert (run / "notes.txt").read_text() == "mine"
    assert [row["step"] for row in history(run)] == [1, 2]


def test_a_run_without_a_checkpoint_that_can_be_read_is_never_started_over_by_itself(run_train: Runner):
    run = run_train("--max-steps", "2")
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(UsageError, match=r"no checkpoint can be read; --overwrite(.|\n)*state.json: missing"):
        run_train("--max-steps", "4")
    assert sorted(path.name for path in run.rglob("*")) == before


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_run_folder_that_cannot_be_is_refused_in_one_line(run_train: Runner, tmp_path: Path, place: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output-dir .*file"):
        run_train("--max-steps", "1", name=place)


def test_a_longer_run_with_a_falling_rate_says_that_it_is_not_one_run_of_that_length(run_train: Runner):
    run_train("--max-steps", "1")
    run = run_train("--max-steps", "2")
    assert "2 steps instead of 1: the tail schedule" in (run / "log.txt").read_text()


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(run_train: Runner, capsys):
    run = run_train("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "99")
    expected = checkpoint_digest(run, 4)
    (run / "checkpoints/step-0000004/ema.safetensors").write_bytes(b"rotten")
    capsys.readouterr()
    run_train("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "99")
    said = capsys.readouterr()
    assert "passed over step-0000004" in said.out + said.err
    assert checkpoint_digest(run, 4) == expected


def test_a_dry_run_writes_nothing(run_train: Runner, capsys):
    run = run_train("--max-steps", "3", "--dry-run")
    assert not run.exists()
    assert "3 steps would run" in capsys.readouterr().out


def test_a_second_run_in_the_folder_of_one_under_way_is_refused_in_one_line(
    run_train: Runner, shards: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    real, second = train.Trainer.step, []

    def step(self, batch, **more):
        if not second:
            words = command(shards, run_folder, "--max-steps", "2", *tiny)
            second.append(subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False))
        return real(self, batch, **more)

    run_folder = run_train("--max-steps", "1")
    before = (run_folder / "command.txt").read_text()
    monkeypatch.setattr(train.Trainer, "step", step)
    run_train("--max-steps", "2")
    assert second[0].returncode == 2
    expected = f"error: {run_folder}: another run is writing there; wait for its end, or choose another --output-dir\n"
    assert second[0].stderr == expected
    assert (run_folder / "command.txt").read_text().count("\n") == before.count("\n") + 1
    assert [row["step"] for row in history(run_folder)] == [1, 2]


def test_of_two_runs_that_begin_at_once_one_goes_on(run_train: Runner, monkeypatch: pytest.MonkeyPatch):
    def build_late(*given):
        monkeypatch.undo()
        run_train("--max-steps", "1")
        return build(*given)

    build = train.build_trainer
    monkeypatch.setattr(train, "build_trainer", build_late)
    with pytest.raises(UsageError, match="another run is writing there"):
        run_train("--max-steps", "1")


def test_a_run_that_failed_leaves_its_folder_to_the_next(run_train: Runner, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train.Trainer, "step", lambda *_, **__: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run_train("--max-steps", "1")


def test_a_run_starts_from_another_ones_generator(run_train: Runner):
    first = run_train("--max-steps", "2", name="first")
    run = run_train("--max-steps", "1", "--init-from", str(first), "--lr", "1e-12", name="second")
    a, b = (load_file(path / "generator.safetensors") for path in (first, run))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a if name.endswith(("weight", "bias")))
    with pytest.raises(UserError, match="fit another network"):
        run_train("--max-steps", "1", "--init-from", str(first), "--generator.channels", "4", "4", name="third")


def test_one_batch_trained_again_and_again_is_learned(run_train: Runner):
    run = run_train(
        "--overfit-one-batch", "--max-steps", "150", "--lr", "0.01", "--report-every", "15", "--batch-size", "2",
        "--eval-every", "999", "--generator.channels", "16", "16", recipe="seed",
    )  # fmt: skip
    losses = [row["g/reconstruction"] for row in history(run) if "g/reconstruction" in row]
    assert losses[-1] < 0.4 * losses[0]


def test_without_validation_samples_training_samples_are_drawn_and_nothing_is_evaluated(
    shards: Path, tmp_path: Path, tiny: tuple[str, ...]
):
    pattern = str(shards / "train-{000000..000002}.tar")
    place = ["--shards", pattern, "--size", "32", "--output-dir", str(tmp_path / "s")]
    train.main(["unet", *place, "--max-steps", "2", *tiny])
    assert (tmp_path / "s/samples/step-0000002.png").exists()
    assert not any(name.startswith("val/") for row in history(tmp_path / "s") for name in row)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--shards", "nowhere"), "nowhere"),
        (("--generator.channels", "4", "4", "4", "4", "4", "4"), "multiples of 64"),
        (("--global-batch-size", "3", "--gradient-accumulation-steps", "2"), "not a multiple"),
        (("--mixed-precision", "fp16"), "needs a GPU"),
        (("--init-from", "nothing.safetensors"), "nothing.safetensors"),
        (("--discriminator.channels", "4", "4", "4", "4", "4", "4", "4"), "--discriminator.channels"),
        (("--batch-size", "1", "--generator.channels", "4", "4", "4", "4", "4"), "--batch-size"),
        (("--size", "64"), "pictures of 32 pixels"),
    ],
)
def test_what_cannot_run_is_refused_by_name_before_anything_is_written(
    run_train: Runner, flags: tuple[str, ...], words: str, tmp_path: Path
):
    with pytest.raises(UserError, match=words):
        run_train("--max-steps", "1", "--cpu", *flags)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_fails_is_a_warning_and_the_next_one_counts(run_train: Runner, monkeypatch):
    real, calls = evaluation.score_result, []

    def once_too_large(*batch):
        calls.append(batch)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return real(*batch)

    monkeypatch.setattr(evaluation, "score_result", once_too_large)
    run = run_train("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "2")
    assert "warning: the evaluation failed: out of memory; training goes on" in (run / "log.txt").read_text()
    assert [row["step"] for row in history(run) if "val/psnr" in row] == [4]
    assert (run / "generator-best.safetensors").is_file()


@pytest.mark.parametrize(("metric", "best"), [("psnr", max), ("hole_l1", min)])
def test_the_best_weights_are_those_of_the_metric_asked_for(metric: str, best: Callable, run_train: Runner):
    run = run_train("--max-steps", "6", "--eval-every", "1", "--best-by", metric, "--lr", "0.02")
    scored = {row["step"]: row[f"val/{metric}"] for row in history(run) if f"val/{metric}" in row}
    assert len(set(scored.values())) == 6
    _, _, about = read_generator(run / "generator-best.safetensors")
    assert int(about["step"]) == best(scored, key=scored.get)


def kept(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(("flags", "expected"), [((), [5, 6]), (("--keep-checkpoints", "3"), [4, 5, 6])])
def test_the_newest_checkpoints_are_kept_as_many_as_asked_for(
    flags: tuple[str, ...], expected: list[int], run_train: Runner
):
    assert kept(run_train("--max-steps", "6", "--checkpoint-every", "1", "--eval-every", "99", *flags)) == expected


def test_the_best_checkpoint_is_kept_until_there_is_a_better_one(run_train: Runner, monkeypatch: pytest.MonkeyPatch):
    scores = iter((10.0, 30.0, 20.0, 20.0, 40.0, 20.0, 20.0))
    monkeypatch.setattr(run_module, "evaluate", lambda *_: {"psnr": next(scores)})
    flags = ("--eval-every", "1", "--checkpoint-every", "1", "--keep-checkpoints", "1")
    assert kept(run_train("--max-steps", "4", *flags)) == [2, 4]
    assert kept(run_train("--max-steps", "7", *flags)) == [5, 7]


@pytest.mark.parametrize("streamed", [False, True], ids=["folder", "stream"])
def test_validation_shards_of_their_own_are_what_is_scored(
    streamed: bool, shards: Path, tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        cv2.imwrite(str(photos / f"own_{number}.png"), np.full((32, 32, 3), 80 * number, np.uint8))
    masks, own = tmp_path / "masks", tmp_path / "own"
    make_masks(MaskSetConfig(out=masks, count=2, size=32, workers=1))
    made = {"val": (str(photos),), "masks": (str(masks),), "size": 32, "workers": 1}
    cv2.imwrite(str(tmp_path / "train.png"), np.zeros((32, 32, 3), np.uint8))
    make_shards(ShardingConfig(photos=(str(tmp_path / "train.png"),), out=own, **made))
    scored: list[str] = []

    def note(complete, photos, ruler, launch):
        scored.extend(photos.batch(list(range(len(photos))), launch.device).keys)
        return {"psnr": 1.0}

    monkeypatch.setattr(run_module, "evaluate", note)
    read = [str(shards / "train-{000000..000002}.tar"), "--size", "32"] if streamed else [str(shards)]
    place = ["--val-shards", str(own), "--output-dir", str(tmp_path / "run")]
    train.main(["unet", "--shards", *read, *place, "--max-steps", "1", *tiny])
    assert sorted(scored) == ["own_0", "own_1", "own_2"]
    read = [*read[:1], "--size", "16"] if streamed else ["shards/sample"]
    with pytest.raises(UsageError, match="--val-shards: 32 pixels a side, the training pictures have"):
        train.main(["unet", "--shards", *read, *place, "--max-steps", "1", *tiny, "--overwrite"])


def noted(networks: tuple[nn.Module, nn.Module], *, world: int, flags: Sequence[str] = ()) -> list[str]:
    """The notes on what is about to run."""
    config = train.parse(["unet", *flags])
    launch = Launch(torch.device("cpu"), rank=0, world=world, precision="no", threads=1)
    sources, trainer = object.__new__(Sources), object.__new__(train.Trainer)
    vars(sources).update(loader=SimpleNamespace(global_batch=8), total_steps=9, notes=[])
    vars(trainer).update(generator=networks[0], discriminator=networks[1])
    return [line for line in train.describe(config, launch, sources, trainer) if line.startswith("note: ")]


def test_where_batch_norm_sees_less_than_the_batch_it_is_said():
    unet, plain, lama = UNetConfig(channels=(4, 8)).build(), nn.Conv2d(3, 3, 1), FeatureDiscriminatorConfig().build()
    parts, apart = ("--gradient-accumulation-steps", "2"), ("--no-sync-batchnorm",)
    penalty = ("--objective.r1-weight", "0.1")
    each_part = "note: batch norm sees each part alone, so this is not the same as one larger batch"
    each_rank = "note: batch norm sees each rank's images alone, so this differs from one process"
    of_d = each_rank.replace("batch norm", "with R1 the discriminator's batch norm")
    assert noted((unet, plain), world=1) == []
    assert noted((unet, plain), world=1, flags=parts) == [each_part]
    assert noted((plain, lama), world=1, flags=parts) == [each_part]
    assert noted((plain, plain), world=2, flags=(*parts, *apart)) == []
    assert noted((unet, plain), world=2) == []
    assert noted((unet, plain), world=2, flags=apart) == [each_rank]
    assert noted((unet, plain), world=2, flags=penalty) == []
    assert noted((unet, lama), world=2) == []
    assert noted((unet, lama), world=1, flags=penalty) == []
    assert noted((unet, lama), world=2, flags=penalty) == [of_d]
    assert noted((unet, lama), world=2, flags=(*penalty, *parts)) == [each_part, of_d]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_never_the_best(value: float, run_train: Runner, monkeypatch: pytest.MonkeyPatch):
    scores = iter([{"psnr": value}, {"psnr": 20.0}, {"psnr": value}])
    monkeypatch.setattr(run_module, "evaluate", lambda *_: next(scores))
    run = run_train("--max-steps", "3", "--eval-every", "1")
    _, _, about = read_generator(run / "generator-best.safetensors")
    assert about["step"] == "2"


@pytest.mark.parametrize("steps", ["4", "2"])
@pytest.mark.parametrize("place", ["generator.safetensors", "README.md"])
def test_a_full_disk_under_the_weights_is_a_warning_until_the_last_step_and_one_line_then(
    place: str, steps: str, run_train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(self: Path, target: Path) -> Path:
        if target == tmp_path / "run" / place and calls.append(target) is None and len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, target)

    real, calls = Path.replace, []
    monkeypatch.setattr(Path, "replace", full)
    flags = ("--max-steps", steps, "--checkpoint-every", "2", "--eval-every", "99")
    if steps == "2":
        with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device\); free space"):
            run_train(*flags)
    else:
        run = run_train(*flags)
        assert "No space left on device" in (run / "log.txt").read_text()
        assert (run / "checkpoints/step-0000004").is_dir()
        assert (run / place).is_file()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the networks of learned metrics, and of FID's equation."""
    monkeypatch.setattr(
        evaluation, "LPIPS", lambda network, device: lambda a, b: (a - b).double().abs().mean((1, 2, 3))
    )
    monkeypatch.setattr(evaluation, "Inception", lambda device: lambda image: image.double().flatten(1)[:, :2048])
    monkeypatch.setattr(evaluation, "frechet_distance", lambda photos, made: float((photos - made).norm()))


@pytest.mark.parametrize("metric", ["lpips_alex", "fid"])
def test_learned_metrics_are_in_history_log_and_weights_and_may_decide_what_is_best(
    metric: str, run_train: Runner, stand_ins: None
):
    chosen = ("--eval-metrics", "psnr", "lpips_alex", "fid", "kid", "--best-by", metric)
    run = run_train("--max-steps", "6", "--eval-every", "1", "--lr", "0.02", *chosen)
    scored = {row["step"]: row[f"val/{metric}"] for row in history(run)}
    assert len(set(scored.values())) == 6
    _, _, about = read_generator(run / "generator-best.safetensors")
    assert int(about["step"]) == min(scored, key=scored.get)
    assert list(json.loads(about["scores"])) == ["psnr", "lpips_alex", "fid", "kid"]
    assert not any(name.startswith("val/ssim") for row in history(run) for name in row)
    assert "lpips_alex" in (run / "log.txt").read_text() and "lpips_alex" in (run / "README.md").read_text()


def test_a_set_that_fid_cannot_be_computed_of_is_a_warning(run_train: Runner, stand_ins: None, monkeypatch):
    def singular(*_: object) -> float:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(evaluation, "frechet_distance", singular)
    run = run_train("--max-steps", "2", "--eval-every", "1", "--eval-metrics", "psnr", "fid")
    assert "warning: the evaluation failed: did not converge; training goes on" in (run / "log.txt").read_text()
    assert history(run)[-1]["step"] == 2


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("metric", "words"),
    [("lpips_vgg", "no network.*vgg16-397923af.pth"), ("kid", "weights-inception-2015-12-05"), ("fid", "eval")],
)
def test_a_learned_metric_without_its_weights_or_package_is_refused_before_the_first_step(
    metric: str, words: str, flags: tuple[str, ...], run_train: Runner, tmp_path: Path, monkeypatch
):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    if words == "eval":
        words = r"torch_fidelity is not installed: pip install 'inpaint-dist\[eval\]'"
        monkeypatch.setattr(learned, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"--eval-metrics: .*{words}"):
        run_train("--max-steps", "1", "--eval-metrics", "psnr", metric, *flags)
    assert not (tmp_path / "run").exists()


def test_fid_of_a_single_validation_photo_is_refused(run_train: Runner, stand_ins: None, monkeypatch):
    monkeypatch.setattr(ValidationSet, "__len__", lambda self: 1)
    with pytest.raises(UsageError, match="--eval-metrics fid: needs 2 validation photos"):
        run_train("--max-steps", "1", "--eval-metrics", "psnr", "fid")


def test_networks_of_metrics_that_nobody_asked_for_are_not_loaded(run_train: Runner, monkeypatch):
    for name in ("LPIPS", "Inception"):
        monkeypatch.setattr(evaluation, name, lambda *_: pytest.fail("loaded"))
    run_train("--max-steps", "1")


def test_a_checkpoint_that_cannot_be_written_is_a_warning_until_the_last_one(run_train: Runner, monkeypatch):
    real, calls = checkpoint.save, []

    def sometimes_full(root, step, *rest):
        calls.append(step)
        if step == 2:
            raise UserError("disk full; free space")
        return real(root, step, *rest)

    monkeypatch.setattr(checkpoint, "save", sometimes_full)
    run = run_train("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "99")
    assert calls == [2, 4]
    assert "disk full" in (run / "log.txt").read_text()
    assert (run / "checkpoints/step-0000004").is_dir()
