"""CPU microseconds an image from shards to training batches: our loader, the decoder alone, webdataset, plain folders.

python -m benchmarks.loader [--shards DIR]

Every row ends with batches of 8-bit photos and their masks in the memory of the training process, except those that say
float32. All take turns in the same rounds, child processes are counted, and each row's seconds include the start of its
workers. `what each row includes` in the report says the rest.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from webdataset.compat import WebDataset, WebLoader

from benchmarks.report import cpu_seconds, write_report
from inpaint_dist import cli
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shards import ShardIndex, mask_extension
from inpaint_dist.errors import UsageError

LIMIT = "decoder alone"
OURS = "inpaint_dist, in the training thread"
THREADS = "inpaint_dist, {} threads"
FLOAT = "inpaint_dist, in the training thread, float32 on the CPU"
DOCUMENTED = "webdataset as documented"
DOCUMENTED_FLOAT = "webdataset as documented, float32"
TUNED = "webdataset tuned"
FOLDER_PIL = "folder, PIL, float32"
FOLDER_CV2 = "folder, OpenCV"

INCLUDES = {
    LIMIT: "simplejpeg on the files in memory, in the loader's order, into one batch's buffer; no reading, no mask",
    OURS: "draw, read, checksum of photo and mask, decode into reused buffers, masks as packed bits, who is mirrored",
    THREADS: "the same in threads of the process: --workers",
    FLOAT: "the first and what a GPU does otherwise: mirror, unpack masks, float32 images in -1..1",
    DOCUMENTED: "shuffle(1000), decode('rgb8'), to_tuple, batched, WebLoader and worker processes; masks of 3 channels",
    DOCUMENTED_FLOAT: "the same with decode('torchrgb'): float32 in 0..1, channels first",
    TUNED: "only photo and mask read, OpenCV for both, 8 bits, masks of 1 channel, stacked in worker processes",
    FOLDER_PIL: "the same files in a folder, a Dataset that opens them by PIL, float32, a DataLoader with workers",
    FOLDER_CV2: "the same by OpenCV, 8 bits, turned into tensors by the DataLoader",
}


@dataclass(frozen=True, kw_only=True)
class LoaderBenchmark:
    """Time the reading of shards."""

    shards: Path = Path("shards/sample")
    """Folder of shards with a train split; it is read whole, so a few thousand samples are plenty."""
    images: int = 2000
    """Images a round and row: the split is read as many times as it takes."""
    rounds: int = 5
    """Rounds, after one that is not counted."""
    batch_size: int = 8
    """Images of a batch."""
    workers: int = 2
    """Threads of ours and processes of webdataset."""

    def __post_init__(self) -> None:
        for flag in ("images", "rounds", "batch_size", "workers"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: give at least 1")


@dataclass(frozen=True)
class Row:
    """One way to read: `run` reads `images`."""

    run: Callable[[], None]
    images: int


def main(argv: Sequence[str]) -> None:
    config = cli.parse(LoaderBenchmark, argv, prog="python -m benchmarks.loader", description=__doc__ or "")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    index = ShardIndex.load(config.shards, "train")
    if len(index.shards) < config.workers:
        raise UsageError(
            f"--workers {config.workers}: webdataset needs a shard for each, {config.shards} has {len(index.shards)}"
        )
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        rows = {**ours(config, index), **theirs(config, index), **folders(config, index, Path(folder))}
        # Python 3.12 warns of any fork beside threads, as torch's DataLoader does; its workers touch none of ours.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        times = measure(rows, config.rounds)
    figures = summary(times, config.workers)
    for title, values in figures.items():
        print(title, *(f"  {name:<60}{value:>9}" for name, value in values.items()), sep="\n")
    write_report(
        "loader",
        figures,
        what_each_row_includes={name.format(config.workers): text for name, text in INCLUDES.items()},
        samples=len(index),
        pixels_of_a_side=index.size,
        mean_bytes_of_a_photo=round(float(index.columns["jpg"].size.mean())),
        images_a_round={name: row.images for name, row in rows.items()},
        batch_size=config.batch_size,
        rounds=config.rounds,
    )


def measure(rows: Mapping[str, Row], rounds: int) -> dict[str, list[float]]:
    """CPU microseconds an image of each row, by round; one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, row in rows.items():
            times[name].append(cpu_seconds(row.run) / row.images * 1e6)
    return {name: values[1:] for name, values in times.items()}


def summary(times: Mapping[str, Sequence[float]], workers: int) -> dict[str, dict[str, float]]:
    """Medians over rounds, of times and of each round's ratios."""
    mine = (OURS, THREADS.format(workers))

    def ratio(of: str, to: str) -> float:
        return round(median(a / b for a, b in zip(times[of], times[to], strict=True)), 3)

    return {
        "CPU microseconds an image": {name: round(median(values), 1) for name, values in times.items()},
        "share of the decoder's limit": {name: ratio(LIMIT, name) for name in times},
        "images for one of webdataset as documented": {name: ratio(DOCUMENTED, name) for name in mine},
        "images for one of webdataset tuned": {name: ratio(TUNED, name) for name in mine},
        "images for one of a folder by PIL": {name: ratio(FOLDER_PIL, name) for name in mine},
        "images for one of a folder by OpenCV": {name: ratio(FOLDER_CV2, name) for name in mine},
    }


# -------------------------------------------------------------------- ours


def ours(config: LoaderBenchmark, index: ShardIndex) -> dict[str, Row]:
    """Our loader, and the decoder that it cannot be faster than."""
    steps = -(-config.images // config.batch_size)
    images = steps * config.batch_size

    def loader(workers: int) -> Loader:
        data = DataConfig(workers=workers)
        device = torch.device("cpu")
        return Loader(data, index, seed=0, rank=0, world=1, per_process=config.batch_size, device=device)

    alone, threaded = loader(0), loader(config.workers)
    files = [alone.decoder.read_photo(sample) for sample in range(len(index))]
    buffer = np.empty((config.batch_size, index.size, index.size, 3), np.uint8)

    def decode() -> None:
        for step in range(steps):
            for place, draw in enumerate(alone.draws(step)):
                simplejpeg.decode_jpeg(files[draw.index], "RGB", buffer=buffer[place])

    runs: dict[str, Callable[[], None]] = {
        LIMIT: decode,
        OURS: lambda: _exhaust(alone.decoded(0, steps)),
        THREADS.format(config.workers): lambda: _exhaust(threaded.decoded(0, steps)),
        FLOAT: lambda: _exhaust(alone.batches(0, steps)),
    }
    return {name: Row(run, images) for name, run in runs.items()}


def _exhaust(batches: Iterator[object]) -> None:
    for _ in batches:
        pass


# -------------------------------------------------------------------- webdataset


def theirs(config: LoaderBenchmark, index: ShardIndex) -> dict[str, Row]:
    """Webdataset on the same tars: the pipeline of its documentation, and one that does no needless work."""
    shards = [str(index.folder / shard.name) for shard in index.shards]
    passes = -(-config.images // len(index))
    images = passes * len(index)

    def read(dataset: Any) -> None:
        loader = WebLoader(dataset.repeat(passes), batch_size=None, num_workers=config.workers)
        found = sum(len(photos) for photos, _ in loader)
        assert found == images, f"webdataset gave {found} images of {images}"

    def documented(decoder: str) -> None:
        dataset: Any = WebDataset(shards, shardshuffle=100)
        read(dataset.shuffle(1000).decode(decoder).to_tuple("jpg;png", "mask.png").batched(config.batch_size))

    def tuned() -> None:
        dataset: Any = WebDataset(shards, shardshuffle=100, select_files=_is_photo_or_mask)
        samples = dataset.shuffle(1000).to_tuple("jpg;png", "mask.png").map_tuple(_photo, _mask)
        read(samples.batched(config.batch_size, collation_fn=_stack))

    runs = {DOCUMENTED: lambda: documented("rgb8"), DOCUMENTED_FLOAT: lambda: documented("torchrgb"), TUNED: tuned}
    return {name: Row(run, images) for name, run in runs.items()}


# -------------------------------------------------------------------- folders of files


def folders(config: LoaderBenchmark, index: ShardIndex, folder: Path) -> dict[str, Row]:
    """A Dataset over files, as it is first written; the shards' photos and first masks become files in `folder`."""
    with ShardReader(index) as reader:
        for sample, key in enumerate(index.keys):
            for extension in (index.extension(sample), mask_extension(0)):
                (folder / f"{key}.{extension}").write_bytes(reader.read(sample, extension))
    names = [(str(folder / f"{key}.jpg"), str(folder / f"{key}.{mask_extension(0)}")) for key in index.keys]
    passes = -(-config.images // len(index))

    def read(dataset: Dataset[tuple[Any, Any]]) -> None:
        loader = DataLoader(dataset, config.batch_size, shuffle=True, num_workers=config.workers)
        found = sum(len(photos) for _ in range(passes) for photos, _ in loader)
        assert found == passes * len(index), f"the folder gave {found} images of {passes * len(index)}"

    runs = {FOLDER_PIL: lambda: read(Files(names, _by_pil)), FOLDER_CV2: lambda: read(Files(names, _by_opencv))}
    return {name: Row(run, passes * len(index)) for name, run in runs.items()}


class Files(Dataset[tuple[Any, Any]]):
    """Photos and masks by the names of their files."""

    def __init__(self, names: Sequence[tuple[str, str]], read: Callable[[str, str], tuple[Any, Any]]) -> None:
        self.names, self._read = names, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return self._read(*self.names[number])


def _by_pil(photo: str, mask: str) -> tuple[Any, Any]:
    with Image.open(photo) as image, Image.open(mask) as hole:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1.0
        return pixels, (torch.from_numpy(np.array(hole.convert("L")))[None].float() / 255.0).round()


def _by_opencv(photo: str, mask: str) -> tuple[Any, Any]:
    return cv2.imread(photo, cv2.IMREAD_COLOR_RGB), cv2.imread(mask, cv2.IMREAD_GRAYSCALE)


def _is_photo_or_mask(name: str) -> bool:
    return not name.endswith(".json")


def _photo(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _mask(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def _stack(samples: Sequence[tuple[Any, Any]]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True))


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))
