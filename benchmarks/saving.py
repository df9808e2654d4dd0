"""What a checkpoint costs the loop: the copy that a thread writes, beside the writing itself.

python -m benchmarks.saving [--recipe mend lama]

Seconds of the clock, medians of interleaved rounds in one process: of the disk's time a CPU clock knows nothing.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import write_report
from inpaint_dist import checkpoint, cli
from inpaint_dist.batch import Batch
from inpaint_dist.errors import UsageError
from inpaint_dist.launch import Launch, LaunchConfig, open_launch
from inpaint_dist.recipes import RECIPES
from inpaint_dist.saving import Snapshot
from inpaint_dist.trainer import Trainer

SIZE = 64
"""Pixels of a side in the one step before: what is saved is as large at any."""


@dataclass(frozen=True, kw_only=True)
class SavingBenchmark:
    """Whose state is saved."""

    recipe: tuple[str, ...] = ("seed", "unet", "aot-gan", "mi-gan")
    """Recipes; of those with a perceptual loss, the weights have to be at hand."""
    rounds: int = 5
    """Saves of each kind."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.recipe if name not in RECIPES]:
            raise UsageError(f"--recipe {' '.join(unknown)}: choose of {', '.join(RECIPES)}")
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds}: give at least 1")


def snapshot_of(name: str, launch: Launch) -> Snapshot:
    """What a recipe's run holds after a step, so that its optimisers hold something."""
    recipe = RECIPES[name]
    networks = recipe.generator.build(), recipe.discriminator.build()
    made = Trainer(recipe.trainer, *networks, recipe.objective, launch, total_steps=10)
    image = torch.rand(2, 3, SIZE, SIZE, device=launch.device) * 2 - 1
    mask = (torch.rand(2, 1, SIZE, SIZE, device=image.device) > 0.7).float()
    made.step(Batch(image, mask, ("a", "b")))
    tensors, state = made.state()
    return Snapshot(step=1, tensors=tensors, state=state)


def measure(snapshot: Snapshot, rounds: int) -> dict[str, float]:
    """Megabytes of a checkpoint; seconds of the copy, and of the writing."""
    times: dict[str, list[float]] = {"copy, seconds": [], "writing, seconds": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            started = time.perf_counter()
            made = snapshot.apart()
            copied = time.perf_counter()
            checkpoint.save(Path(folder), made.step, made.tensors, made.state)
            times["copy, seconds"].append(copied - started)
            times["writing, seconds"].append(time.perf_counter() - copied)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.*") if path.is_file())
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    share = medians["copy, seconds"] / (medians["copy, seconds"] + medians["writing, seconds"])
    return {"megabytes": round(size / 1e6, 1)} | medians | {"share that the loop waits for": round(share, 3)}


def main(argv: Sequence[str]) -> int:
    config = cli.parse(
        SavingBenchmark, argv, prog="python -m benchmarks.saving", description="Time what a checkpoint costs the loop."
    )
    figures: dict[str, dict[str, float]] = {}
    with open_launch(LaunchConfig(mixed_precision="no")) as launch:
        for name in config.recipe:
            figures[name] = measure(snapshot_of(name, launch), config.rounds)
            print(name, figures[name])
    print(f"wrote {write_report('saving', figures, rounds=config.rounds)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
