"""Elastic worlds: a run that goes on with more and fewer processes reads the same batches and learns the same."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from inpaint_dist import checkpoint

RECORDED = """
import json, os
import torch
from inpaint_dist.batch import Batch
from inpaint_dist.run import Run
from inpaint_dist.trainer import Trainer
build, step, folder = Trainer.__init__, Trainer.step, os.environ["RECORD"]

def built(self, config, generator, discriminator, *rest, **more):
    build(self, config, generator.double(), discriminator.double(), *rest, **more)

def recorded(self, batch, **more):
    batch = Batch(batch.image.double(), batch.mask.double(), batch.keys)
    losses = step(self, batch, **more)
    mean = {name: float(self.launch.mean(value.double())) for name, value in losses.items()}
    with open(f"{folder}/rank-{self.launch.rank}.jsonl", "a") as file:
        file.write(json.dumps({"step": self.step_count, "keys": batch.keys, "losses": mean}) + "\\n")
    return losses

Trainer.__init__, Trainer.step = built, recorded
Run.evaluate = Run.draw = lambda self, step: None  # their pictures are float32
"""
"""The run in float64; each rank writes down its samples, and the losses over all ranks, unrounded."""
QUIET = ("--checkpoint-every", "1000", "--eval-every", "1000", "--sample-every", "1000", "--lr-schedule", "constant")
WORLDS = (1, 2, 4, 2, 1)
STEPS = 3
"""Of each world; a global batch of 4 of 11 photos, so that batches straddle epochs."""


def legs(nursery: Any, run: Path, worlds: Sequence[int], steps: int, *flags: str) -> list[dict[str, Any]]:
    """Run so many steps in each world, each going on from the last; of each step, all ranks' samples and the losses."""
    found: list[dict[str, Any]] = []
    for number, world in enumerate(worlds, 1):
        folder = run.with_name(f"{run.name}-{number}-of-{world}")
        folder.mkdir(parents=True)
        last = ("--max-steps", str(number * steps))
        ranks = nursery.start(run, *QUIET, *flags, *last, world=world, code=RECORDED, RECORD=str(folder))
        assert ranks.ended() == [0] * world, ranks.said()
        parts = [
            [json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]
            for rank in range(world)
        ]
        for told in zip(*parts, strict=True):
            assert all(one["losses"] == told[0]["losses"] for one in told)
            keys = [key for one in told for key in one["keys"]]
            found.append({"step": told[0]["step"], "keys": keys, "losses": told[0]["losses"], "said": ranks.said()})
    return found


def furthest(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> float:
    """The largest difference between two courses of losses, relative where a loss is above 1."""
    pairs = [
        (one["losses"][name], value)
        for one, other in zip(found, expected, strict=True)
        for name, value in other["losses"].items()
    ]
    assert len(pairs) >= 10 * len(expected)
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)


def weights(run: Path) -> dict[str, torch.Tensor]:
    path, _ = checkpoint.newest(run / "checkpoints")
    assert path is not None
    groups = checkpoint.load(path).tensors
    return {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}


def test_a_run_on_1_2_4_2_and_1_processes_is_the_unbroken_run_on_one(
    nursery: Any, tmp_path: Path, record_property: Callable[[str, object], None]
):
    elastic = legs(nursery, tmp_path / "elastic", WORLDS, STEPS)
    unbroken = legs(nursery, tmp_path / "unbroken", (1,), STEPS * len(WORLDS))
    assert [one["step"] for one in elastic] == [*range(1, 1 + STEPS * len(WORLDS))]
    assert [one["keys"] for one in elastic] == [one["keys"] for one in unbroken]
    assert all(len(one["keys"]) == 4 for one in elastic)
    record_property("largest difference of a loss in float64", furthest(elastic, unbroken))
    assert furthest(elastic, unbroken) < 1e-9
    found, expected = weights(tmp_path / "elastic"), weights(tmp_path / "unbroken")
    assert found.keys() == expected.keys()
    assert {tensor.dtype for tensor in expected.values()} >= {torch.float64}
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-9


def test_each_ranks_own_batch_norm_reads_the_same_batches_learns_otherwise_and_says_so(nursery: Any, tmp_path: Path):
    own = legs(nursery, tmp_path / "own", (1, 2), STEPS, "--no-sync-batchnorm")
    unbroken = legs(nursery, tmp_path / "unbroken", (1,), 2 * STEPS)
    assert [one["keys"] for one in own] == [one["keys"] for one in unbroken]
    assert furthest(own[:STEPS], unbroken[:STEPS]) == 0
    assert furthest(own[STEPS:], unbroken[STEPS:]) > 1e-6
    note = "note: batch norm sees each rank's images alone, so this differs from one process"
    assert [one["said"].count(note) for one in own] == [0] * STEPS + [1] * STEPS
