"""Quality after equal minutes: recipes trained for as long on the same photos and masks, scored on the same holes.

python -m benchmarks.race --shards DIR --photos DIR --masks DIR --minutes 10 --rows seed unet mend lama-small

A row is a recipe, or one of the variants of benchmarks/variants.py. Each trains in a folder of its own under --work and
goes on there when the command is given again; a row that is done is not trained a second time, so that a race may be
run in many sittings, a few rows more in each. Rows are scored on their way too, by the averaged weights that they would
be used with. A row's length in steps is set before any row trains: the time over that of its median step. On a GPU time
is the clock's; on a CPU it is the process's CPU time, with a minute meaning all cores for a minute. Give it the machine
until all lengths are told: a step costs up to twice as much CPU time beside other work, and what is fixed then depends
on it no longer.
"""

import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.curves import draw_progress
from benchmarks.quality import (
    BASE,
    draw_sheet,
    figures_of,
    open_generator,
    open_systems,
    refuse_unknown_metrics,
    score,
    table,
    write_sheet,
)
from benchmarks.variants import ROWS
from inpaint_dist import checkpoint, cli
from inpaint_dist.config import TrainConfig, shaping
from inpaint_dist.data.pairs import PhotoSet
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError
from inpaint_dist.evaluation import MetricName, Ruler, summarise
from inpaint_dist.host import usable_cores, written_whole
from inpaint_dist.launch import Launch, LaunchConfig, open_launch
from inpaint_dist.models import ContextEncoderConfig
from inpaint_dist.run_folder import CHECKPOINTS, Start
from inpaint_dist.train import build_trainer, open_data, train
from inpaint_dist.trainer import count_parameters

WARM, TIMED = 2, 8
"""Steps that are run before the ones that tell a row's cost, and those at least: of a lazy R1 a whole period."""

PARTS = 10
"""Parts of a training, at the end of each of which it is saved."""

COSTS = ("steps", "parameters", "precision", "seconds a step", "seconds")
"""What the report tells of a row's training."""

TALLY_EVERY = 5.0
"""Seconds between two notes of what a training has spent: what a sitting that is killed leaves untold at most."""


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """Who races, for how long, on what."""

    shards: Path
    """Folder of shards to train on."""
    photos: Path
    """Folder of photos to score on, fitted to the shards' size."""
    masks: Path
    """Folder of masks for them, white = hole; each photo's is drawn by a hash of its key."""
    rows: tuple[str, ...] = ("seed", "unet", "mend", "lama-small")
    """Recipes or variants."""
    minutes: float = 10.0
    """Training time of each row."""
    mask_source: str | None = "paired"
    """The masks that every row trains on, as --mask-source of the trainer; None: each recipe's own."""
    metrics: tuple[MetricName, ...] = ("psnr", "hole_l1", "lpips_alex", "kid")
    """What is scored."""
    points: int = 5
    """How often each row is scored, at equal parts of its minutes, the last time at their end: 1, 2, 5 or 10."""
    limit: int | None = None
    """Score that many photos, spread evenly over the folder."""
    at_once: int = 1
    """Rows that train side by side, sharing the cores; only without a GPU."""
    seed: int = 0
    """Of every training."""
    work: Path = Path("runs/race")
    """Where the runs are."""
    name: str = "race"
    """Of the report: benchmarks/results/NAME.json."""
    sheet: Path | None = None
    """Draw photo, masked photo and what each system made of it, a row each, into this .png or .jpg."""
    sheet_photos: int = 8
    """Photos on the sheet, spread evenly over the hole ratios."""
    curves: Path | None = None
    """Draw LPIPS and KID (or the first two metrics) against minutes into this .png."""

    def __post_init__(self) -> None:
        if unknown := [row for row in self.rows if row not in ROWS]:
            raise UsageError(f"--rows {' '.join(unknown)}: choose of {', '.join(ROWS)}")
        refuse_unknown_metrics(self.metrics)
        if not self.minutes > 0:
            raise UsageError(f"--minutes {self.minutes}: give more than 0")
        for flag in ("limit", "at_once", "sheet_photos"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UsageError(f"--{flag.replace('_', '-')} {value}: give at least 1")
        if self.points < 1 or PARTS % self.points:
            raise UsageError(f"--points {self.points}: give 1, 2, 5 or 10")
        if self.curves is not None and self.curves.suffix.lower() != ".png":
            raise UsageError(f"--curves {self.curves}: name a .png file")
        if self.sheet is not None and self.sheet.suffix.lower() not in (".png", ".jpg"):
            raise UsageError(f"--sheet {self.sheet}: name a .png or .jpg file")
        if self.at_once > 1 and torch.cuda.is_available():
            raise UsageError("--at-once: rows take turns on a GPU")

    @property
    def threads(self) -> int:
        """Of a row."""
        return max(1, usable_cores() // self.at_once)

    @property
    def seconds(self) -> float:
        """Of the clock on a GPU, of CPU time without one."""
        return self.minutes * 60 * (1 if torch.cuda.is_available() else usable_cores())


def folder_of(race: RaceConfig, row: str) -> Path:
    """A row's run."""
    return race.work / row.replace("/", "-")


def config_of(race: RaceConfig, row: str) -> TrainConfig:
    """A row as a training run: its own recipe, everybody's data; nothing is drawn or evaluated before the end."""
    base = ROWS[row]
    never = 10**9
    if isinstance(base.generator, ContextEncoderConfig):  # the only one that is made for one size
        size = ShardIndex.load(race.shards, "train").size
        base = replace(base, generator=replace(base.generator, size=size))
    return replace(
        base,
        output_dir=folder_of(race, row),
        seed=race.seed,
        eval_every=never,
        checkpoint_every=never,
        data=replace(
            base.data,
            shards=str(race.shards),
            workers=None if torch.cuda.is_available() else 0,
            mask_source=race.mask_source or base.data.mask_source,
        ),
        launch=LaunchConfig(threads=race.threads),
        tracking=replace(base.tracking, report_to="none", sample_every=never),
    )


def clock() -> float:
    """Seconds of what a row may spend, all work so far done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return spent()


def spent() -> float:
    """Seconds of the clock on a GPU, of this process's CPU time without one."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def step_cost(config: TrainConfig) -> tuple[float, int, str]:
    """Seconds of a row's step, the generator's number of parameters, and the precision that the machine allows.

    The median; with a lazy R1, that of the steps without it and its share of one with it.
    """
    every = config.objective.r1_every if config.objective.r1_weight else 1
    steps = WARM + max(TIMED, every)
    with open_launch(config.launch) as launch:
        sources = open_data(replace(config, max_steps=steps), launch)
        trainer = build_trainer(config, launch, sources, Start(0, None, []))
        costs, since = [], clock()
        for batch in sources.loader.batches(0, steps):
            trainer.step(batch)
            costs.append(-since + (since := clock()))
        plain = [cost for step, cost in enumerate(costs) if step >= WARM and (every == 1 or step % every)]
        penalised = [cost for step, cost in enumerate(costs) if step >= WARM and step % every == 0]
        cost = statistics.median(plain)
        if every > 1:
            cost += (statistics.median(penalised) - cost) / every
        return cost, count_parameters(trainer.generator.parameters()), launch.precision


def plan_of(race: RaceConfig, row: str) -> Path:
    """Where a row's length and costs are written down."""
    return folder_of(race, row).with_suffix(".json")


def plan_row(race: RaceConfig, row: str) -> None:
    """Measure what a row's step costs, in a process of its own, and fix its length by it, once and for all."""
    plan, asked = plan_of(race, row), what_shapes(race, row)
    if plan.exists():
        before = json.loads(plan.read_text())["of"]
        if differing := [key for key in asked if before.get(key) != asked[key]]:
            raise UsageError(
                f"{plan}: is of another {', '.join(differing)}; name another --work, or remove the row there"
            )
        return
    cost, parameters, precision = step_cost(config_of(race, row))
    steps = max(1, round(race.seconds / cost))
    costs = {"parameters": parameters, "precision": precision, "seconds a step": round(cost, 4)}
    _write(plan, {"of": asked, "steps": steps} | costs)
    print(f"{row}: {steps} steps of {cost:.3f} s", flush=True)


def what_shapes(race: RaceConfig, row: str) -> dict[str, Any]:
    """What a row's training is of: a plan of anything else is not gone on with."""
    dataset = ShardIndex.load(race.shards, "train").fingerprint
    device = "cuda" if torch.cuda.is_available() else "cpu"
    whole = {"minutes": race.minutes, "threads": race.threads, "device": device}
    return json.loads(json.dumps(whole | {"recipe": shaping(config_of(race, row), dataset=dataset)}))


def train_row(race: RaceConfig, row: str) -> None:
    """Train a row, in a process of its own, and write down what it took, over all sittings."""
    plan: dict[str, Any] = json.loads(plan_of(race, row).read_text())
    if plan.get("done"):
        return
    since, ended = spent() - plan.get("seconds", 0.0), threading.Event()

    def tally() -> None:
        _write(plan_of(race, row), plan | {"seconds": round(spent() - since, 1), "done": ended.is_set()})

    def keep_tally() -> None:
        while not ended.wait(TALLY_EVERY):
            tally()

    noting = threading.Thread(target=keep_tally, daemon=True)
    noting.start()
    config = replace(config_of(race, row), max_steps=plan["steps"], checkpoint_every=part_of(plan["steps"]))
    train(replace(config, keep_checkpoints=plan["steps"] // part_of(plan["steps"]) + 1))
    ended.set()
    noting.join()
    tally()


def part_of(steps: int) -> int:
    """Steps between two saves."""
    return max(1, steps // PARTS)


def points_of(race: RaceConfig, row: str) -> dict[float, Path]:
    """Minutes → weights, for each time that a row is scored before its end."""
    steps = json.loads(plan_of(race, row).read_text())["steps"]
    wanted = [number * PARTS // race.points * part_of(steps) for number in range(1, race.points)]
    saved = folder_of(race, row) / CHECKPOINTS
    return {race.minutes * step / steps: saved / checkpoint.folder_name(step) for step in wanted if step < steps}


def _write(path: Path, plain: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(json.dumps(plain, indent=1))


def in_processes(work: Callable[[RaceConfig, str], None], race: RaceConfig) -> None:
    """Do this for each row in a process of its own, so many at once as the race allows.

    Raises:
        UsageError: a row failed, after all others had their turn.
    """
    spawn = multiprocessing.get_context("spawn")

    def run(row: str) -> int | None:
        process = spawn.Process(target=work, args=(race, row))
        process.start()
        process.join()
        return process.exitcode

    with ThreadPoolExecutor(race.at_once) as pool:
        codes = dict(zip(race.rows, pool.map(run, race.rows), strict=True))
    if failed := [row for row, code in codes.items() if code]:
        raise UsageError(
            f"--rows {' '.join(failed)}: these did not reach their end; the same command goes on with them"
        )


def told(race: RaceConfig) -> dict[str, Any]:
    """What the training of each row took, and what rows may differ in beside their networks and losses."""
    found: dict[str, Any] = {}
    for row in race.rows:
        config, plan = config_of(race, row), json.loads(plan_of(race, row).read_text())
        about = {"masks": config.data.mask_source, "flip": config.data.flip, "rates": config.trainer.lr_schedule}
        about["batch"] = config.data.batch_size or 8
        found[row] = about | {name: plan[name] for name in COSTS}
    return found


def progress_of(race: RaceConfig, row: str, pairs: PhotoSet, ruler: Ruler, launch: Launch) -> list[dict[str, Any]]:
    """A row's figures over all photos at each point before its end: [{"minutes": …, "psnr": {"mean": …}, …}, …]."""
    found: list[dict[str, Any]] = []
    for minutes, weights in points_of(race, row).items():
        name = f"{row} after {minutes:.3g} minutes"
        scored = score(pairs, {name: open_generator(row, weights, pairs.size, launch.device)}, ruler, launch)
        figures = summarise(scored[name], race.metrics)["all"]
        found.append({"minutes": round(minutes, 3)} | {m: figures[m] for m in race.metrics if m in figures})
    return found


def main(argv: Sequence[str]) -> int:
    race = cli.parse(
        RaceConfig,
        argv,
        prog="python -m benchmarks.race",
        description="Train recipes for equal minutes and score them.",
    )
    size = ShardIndex.load(race.shards, "train").size
    pairs = PhotoSet(race.photos, race.masks, pairing="pool", size=size, limit=race.limit)
    in_processes(plan_row, race)
    in_processes(train_row, race)
    with open_launch(LaunchConfig(mixed_precision="no")) as launch:
        ruler = Ruler(race.metrics, launch.device)
        systems = open_systems([(row, folder_of(race, row)) for row in race.rows], size, launch.device)
        scored = score(pairs, systems, ruler, launch)
        progress = {row: progress_of(race, row, pairs, ruler, launch) for row in race.rows}
        if race.sheet is not None:
            ratios = scored[BASE].ratios.tolist()
            write_sheet(race.sheet, draw_sheet(pairs, systems, ratios, race.sheet_photos, launch.device))
    figures = figures_of(scored, race.metrics)
    print("\n".join(table(figures, race.metrics)))
    for row in race.rows:
        whole = {name: part for name, part in figures[row]["all"].items() if name in race.metrics}
        figures[row]["progress"] = [*progress[row], {"minutes": race.minutes} | whole]
    if race.curves is not None:
        draw_progress(race.curves, figures, race.metrics)
        print(f"wrote {race.curves}")
    path = report.write_report(
        race.name,
        figures,
        minutes=race.minutes,
        time="the clock's" if torch.cuda.is_available() else f"CPU time over {usable_cores()} cores",
        training=told(race),
        trained_on=f"train split of {race.shards.resolve().name}",
        scored_on=f"{len(pairs)} photos of {race.photos.resolve().name}, masks of {race.masks.resolve().name}",
        size=size,
        seed=f"{race.seed}, one training a row: the intervals are over photos and leave out how trainings vary",
    )
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
