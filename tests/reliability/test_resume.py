"""Resume: anywhere, with any number of workers, bit for bit; and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inpaint_dist import checkpoint
from inpaint_dist.batch import Batch
from inpaint_dist.errors import UsageError
from inpaint_dist.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn")

Runner = Callable[..., Path]
TIMING = ("images_per_second", "data_wait", "eta_seconds")
ALIKE = (
    *("--limit", "8", "--batch-size", "2", "--mask-source", "pool", "--lr-schedule", "constant"),
    *("--report-every", "1", "--checkpoint-every", "99", "--eval-every", "99", "--sample-every", "99"),
)
"""Four steps an epoch, and none of the events that a longer run has elsewhere."""


class Seen:
    """What a run did, step by step, and what it ended in."""

    def __init__(self) -> None:
        self.order: list[tuple[int, tuple[str, ...], float]] = []

    def ended(self, run: Path, step: int) -> dict[str, Any]:
        """Samples as they were read, losses as they were reported, and the last checkpoint, file by file."""
        lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        losses = [{k: v for k, v in row.items() if k not in TIMING and not k.startswith("val/")} for row in lines]
        files = checkpoint.verify(run / "checkpoints" / checkpoint.folder_name(step))["files"]
        tensors = {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")}
        assert set(tensors) == {f"{part}.safetensors" for part in PARTS}
        done, self.order = self.order, []
        return {"order": done, "losses": losses, **tensors}


PARTS = ("generator", "discriminator", "ema", "optimizer_g", "optimizer_d")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    real, seen = Trainer.step, Seen()

    def step(self: Trainer, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
        pixels = float(batch.image.double().sum() + batch.mask.double().sum())  # mirroring and masks too
        seen.order.append((self.step_count + 1, batch.keys, pixels))
        return real(self, batch, **more)

    monkeypatch.setattr(Trainer, "step", step)
    return seen


WHOLE: dict[tuple[str, ...], dict[str, Any]] = {}


STOPS = {1: "first step", 2: "mid-epoch", 4: "last of an epoch", 5: "first of the second epoch"}


@pytest.mark.parametrize("workers", [("0", "2"), ("2", "0"), ("1", "4")], ids="{0[0]} then {0[1]} workers".format)
@pytest.mark.parametrize("parts", ["1", "2"], ids="{} parts".format)
@pytest.mark.parametrize("stop", STOPS, ids=STOPS.get)
def test_a_resumed_run_is_an_unbroken_one_bit_for_bit(
    stop: int, parts: str, workers: tuple[str, str], run_train: Runner, seen: Seen
):
    flags = (*ALIKE, "--gradient-accumulation-steps", parts)
    if flags not in WHOLE:
        WHOLE[flags] = seen.ended(run_train("--max-steps", "6", *flags, "--workers", "0", name="whole"), 6)
    run_train("--max-steps", str(stop), *flags, "--workers", workers[0], name="parts")
    run = run_train("--max-steps", "6", *flags, "--workers", workers[1], name="parts")
    found = seen.ended(run, 6)
    assert [step for step, *_ in found["order"]] == [1, 2, 3, 4, 5, 6]
    for part, expected in WHOLE[flags].items():
        assert found[part] == expected, part


@pytest.mark.parametrize("stop", [2, 3])
def test_it_is_so_where_a_batch_straddles_two_epochs(stop: int, run_train: Runner, seen: Seen):
    """11 samples in batches of 4: step 3 ends one epoch and begins the next."""
    flags = (*ALIKE, "--limit", "11", "--batch-size", "4")
    whole = seen.ended(run_train("--max-steps", "5", *flags, name="whole"), 5)
    run_train("--max-steps", str(stop), *flags, name="parts")
    assert seen.ended(run_train("--max-steps", "5", *flags, name="parts"), 5) == whole


# ------------------------------------------------------------------------------------------------ what is refused

FEW = ("--max-steps", "2", *ALIKE)
CHANGES = {
    "dataset": (("--limit", "7"), "--shards, --limit: other training photos or masks"),
    "global_batch": (("--batch-size", "4"), "images a step over all processes: then 2, now 4; give --global-batch-siz"),
    "trainer.lr": (("--lr", "0.01"), "--lr: then 0.001, now 0.01"),
    "seed": (("--seed", "3"), "--seed: then 0, now 3"),
    "objective.adversarial_weight": (("--objective.adversarial-weight", "0.5"), "--objective.adversarial-weight: then"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_difference_is_refused_by_name_with_the_flag_that_allows_it_and_goes_on_with_it(key: str, run_train: Runner):
    flags, words = CHANGES[key]
    run_train("--max-steps", "1", *ALIKE)
    with pytest.raises(UsageError) as refused:
        run_train(*FEW, *flags)
    (line,) = str(refused.value).splitlines()[1:]
    assert words in line
    assert line.endswith(f"(--allow-changed {key})")
    run = run_train(*FEW, *flags, "--allow-changed", key)
    log = (run / "log.txt").read_text()
    assert f"changed since the run began: {words}" in log and "going on from" in log
    assert [row["step"] for row in map(json.loads, (run / "history.jsonl").read_text().splitlines())] == [1, 2]
    run_train("--max-steps", "3", *ALIKE, *flags)  # from now on it is that run
    with pytest.raises(UsageError, match="holds a run that differs"):
        run_train("--max-steps", "4", *ALIKE)


def test_only_what_is_allowed_may_differ(run_train: Runner):
    run_train("--max-steps", "1", *ALIKE)
    with pytest.raises(UsageError) as refused:
        run_train(*FEW, "--lr", "0.01", "--limit", "7", "--seed", "3", "--allow-changed", "lr", "seed")
    assert [line.split("(")[-1] for line in str(refused.value).splitlines()[1:]] == ["--allow-changed dataset)"]


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_another_network_is_never_allowed(network: str, run_train: Runner):
    run_train("--max-steps", "1", *ALIKE)
    key = f"{network}.channels"
    with pytest.raises(UsageError) as refused:
        run_train(*FEW, f"--{key}", "4", "4", "--allow-changed", key)
    (line,) = str(refused.value).splitlines()[1:]
    assert line == f"  --{key}: then [4, 8], now [4, 4] (another network: never)"


def test_a_key_that_is_none_is_refused_with_the_nearest(run_train: Runner):
    run_train("--max-steps", "1", *ALIKE)
    with pytest.raises(UsageError, match=r"--allow-changed datasets: did you mean dataset\?"):
        run_train(*FEW, "--allow-changed", "datasets")


def test_checkpoints_of_another_format_alone_are_refused_by_its_number(run_train: Runner):
    run = run_train("--max-steps", "1", *ALIKE)
    manifest = run / "checkpoints/step-0000001" / checkpoint.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(UsageError, match=r"no checkpoint can be read(.|\n)*checkpoint format 2, this version reads 1"):
        run_train(*FEW, "--allow-changed", "dataset")


def test_a_folder_of_an_older_version_that_lists_what_is_no_longer_compared_goes_on(run_train: Runner):
    run = run_train("--max-steps", "1", *ALIKE)
    config = json.loads((run / "config.json").read_text())
    config["shaping"] |= {"data.limit": 9, "trainer.max_rollbacks": 7}
    (run / "config.json").write_text(json.dumps(config))
    run_train(*FEW)
    assert (run / "checkpoints/step-0000002").is_dir()
