"""Whether the loader keeps a GPU busy: training from shards against training on one batch that is there already.

python -m benchmarks.feeding --shards DIR [--recipe unet] [--batch-size 32] [--threads 1 2 4 8]

Seconds are the clock's, between two moments at which the device is idle; both kinds of step take their turn in the same
rounds. On a GPU the trace of a few steps tells how much of the time it computed, and what was copied to it. How many
images a second the loader brings with nothing trained shows how its threads scale.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import write_report
from inpaint_dist import cli
from inpaint_dist.batch import Batch
from inpaint_dist.config import TrainConfig
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError
from inpaint_dist.launch import Launch, LaunchConfig, open_launch
from inpaint_dist.recipes import RECIPES
from inpaint_dist.trainer import Trainer

SYNTHETIC = "one batch, again and again"
_WARM_UP = 5
_TRACED = 10  # steps


@dataclass(frozen=True, kw_only=True)
class FeedingBenchmark:
    """Time training with and without reading."""

    shards: Path = Path("shards/sample")
    """Folder of shards with a train split."""
    recipe: tuple[str, ...] = ("unet",)
    """Recipes to train; the faster the network, the more is asked of the loader."""
    threads: tuple[int, ...] = (1, 2, 4, 8)
    """Decoding threads, each number a row."""
    batch_size: int = 32
    """Images of a step."""
    steps: int = 40
    """Steps of a turn."""
    rounds: int = 3
    """Rounds in which all take their turn."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.recipe if name not in RECIPES]:
            raise UsageError(f"--recipe {' '.join(unknown)}: choose of {', '.join(RECIPES)}")
        for flag in ("batch_size", "steps", "rounds"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: give at least 1")
        if not self.threads or min(self.threads) < 1:
            raise UsageError(f"--threads {' '.join(map(str, self.threads))}: give one number or more, each at least 1")


def main(argv: Sequence[str]) -> None:
    config = cli.parse(FeedingBenchmark, argv, prog="python -m benchmarks.feeding", description=__doc__ or "")
    index = ShardIndex.load(config.shards, "train")
    with open_launch(LaunchConfig()) as launch:
        loaders = {threads: a_loader(index, threads, config, launch.device) for threads in config.threads}
        figures: dict[str, Any] = {"nothing trained": loading(loaders, config)}
        for name in dict.fromkeys(config.recipe):
            figures[name] = training(RECIPES[name], loaders, config, launch)
        figures["bytes that the loader copies to the device, an image"] = bytes_an_image(next(iter(loaders.values())))
        precision = launch.precision
    for title, values in figures.items():
        print(title, *(_lines(values) if isinstance(values, Mapping) else [f"  {values}"]), sep="\n")
    write_report(
        f"feeding-{launch.device.type}",
        figures,
        seconds="the clock's",
        batch_size=config.batch_size,
        pixels_of_a_side=index.size,
        samples=len(index),
        mean_bytes_of_a_photo=round(float(index.columns["jpg"].size.mean())),
        precision=precision,
        steps_a_turn=config.steps,
        rounds=config.rounds,
        traced_steps=_TRACED,
    )


def a_loader(index: ShardIndex, threads: int, config: FeedingBenchmark, device: torch.device) -> Loader:
    """A loader of one rank."""
    data = DataConfig(workers=threads)
    return Loader(data, index, seed=0, rank=0, world=1, per_process=config.batch_size, device=device)


def bytes_an_image(loader: Loader) -> float:
    """What is in the host's memory of a batch, all of which is copied."""
    buffers, _ = next(loader.decoded(0, 1))
    tensors = (buffers.pixels, buffers.bits, buffers.flips)
    return sum(tensor.nbytes for tensor in tensors) / loader.per_process


def loading(loaders: Mapping[int, Loader], config: FeedingBenchmark) -> dict[str, dict[str, float]]:
    """Images a second of each number of threads, and of as many that do nothing but decode files in memory."""
    images, some = config.steps * config.batch_size, next(iter(loaders.values()))
    files = [some.decoder.read_photo(draw.index) for step in range(config.steps) for draw in some.draws(step)]
    ways: dict[str, Callable[[], None]] = {}
    for threads, loader in loaders.items():
        ways[_threads(threads)] = lambda loader=loader: _exhaust(loader.batches(0, config.steps))
        ways[f"{_threads(threads)}, decoding alone"] = lambda threads=threads: decode(files, threads, some.index.size)
    seconds = timed(ways, config.rounds)
    rates = {name: images / value for name, value in medians(seconds).items()}
    shares = {
        _threads(threads): median(
            a / b
            for a, b in zip(seconds[f"{_threads(threads)}, decoding alone"], seconds[_threads(threads)], strict=True)
        )
        for threads in loaders
    }
    return {"images a second": _rounded(rates, 1), "share of decoding alone": _rounded(shares, 3)}


def decode(files: Sequence[bytes], threads: int, size: int) -> None:
    """Decode files by so many threads, each into a buffer of its own."""

    def part(first: int) -> None:
        buffer = np.empty((size, size, 3), np.uint8)
        for data in files[first::threads]:
            simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)

    with ThreadPoolExecutor(threads) as pool:
        _exhaust(pool.map(part, range(threads)))


def training(
    recipe: TrainConfig, loaders: Mapping[int, Loader], config: FeedingBenchmark, launch: Launch
) -> dict[str, Any]:
    """Images a second of steps on read batches and on one that is there, and their ratio."""
    torch.manual_seed(0)
    networks = (recipe.generator.build(), recipe.discriminator.build())
    trainer = Trainer(recipe.trainer, *networks, recipe.objective, launch, total_steps=1_000_000)
    batch = next(iter(loaders[min(loaders)].batches(0, 1)))

    def run(batches: Iterable[Batch]) -> None:
        for batch in batches:
            trainer.step(batch)
        trainer.faults.look()

    run(repeat(batch, _WARM_UP))
    fed: dict[str, Callable[[int], Iterable[Batch]]] = {
        SYNTHETIC: lambda steps: repeat(batch, steps),
        **{
            f"read by {_threads(threads)}": lambda steps, loader=loader: loader.batches(0, steps)
            for threads, loader in loaders.items()
        },
    }
    seconds = timed({name: lambda feed=feed: run(feed(config.steps)) for name, feed in fed.items()}, config.rounds)
    images = config.steps * config.batch_size
    figures: dict[str, Any] = {
        "images a second": _rounded({name: images / value for name, value in medians(seconds).items()}, 1),
        "share of the rate on one batch": {
            name: round(median(a / b for a, b in zip(seconds[SYNTHETIC], values, strict=True)), 3)
            for name, values in seconds.items()
        },
    }
    if launch.device.type == "cuda":
        figures["traced"] = {
            name: traced(lambda feed=feed: run(feed(_TRACED)), _TRACED * config.batch_size)
            for name, feed in (next(iter(fed.items())), [*fed.items()][-1])  # each takes seconds to be read
        }
    return figures


def timed(ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the clock of each way, by round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            _settle()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: median(values) for name, values in seconds.items()}


def traced(way: Callable[[], None], images: int) -> dict[str, float]:
    """How much of the time from the device's first kernel to its last a kernel ran, and what was copied to it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            way()
            _settle()
        profiler.export_chrome_trace(str(place))
        events = json.loads(place.read_text(encoding="utf-8"))["traceEvents"]
    kernels = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel")
    copies = [e for e in events if e.get("cat") == "gpu_memcpy" and "HtoD" in e["name"]]
    busy, reached = 0.0, kernels[0][0]
    for start, end in kernels:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return {
        "busy share": round(busy / (reached - kernels[0][0]), 3),
        "kernels a step": round(len(kernels) / _TRACED, 1),
        "microseconds of kernels an image": round(busy / images, 1),
        "bytes copied to it, an image": round(sum(e["args"]["bytes"] for e in copies) / images, 1),
    }


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _rounded(values: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def _lines(values: Mapping[str, Any], depth: int = 1) -> Iterable[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield "  " * depth + name
            yield from _lines(value, depth + 1)
        else:
            yield f"{'  ' * depth + name:<60}{value:>12}"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))
