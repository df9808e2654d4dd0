"""What the loader promises of any set, on any number of ranks and workers: exactly once, in step, the same batches."""

import gc
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from inpaint_dist.data import shard_reader
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.order import Draw, steps_for
from inpaint_dist.data.shard_writer import ShardWriter, write_index
from inpaint_dist.data.shards import ShardIndex, encode_mask, shard_name

CPU = torch.device("cpu")
PRIMES = (2, 13, 3, 1, 11, 5, 7)
DIVISORS = tuple(n for n in range(1, 961) if 960 % n == 0)


def made_up(folder: Path, sizes: Sequence[int]) -> ShardIndex:
    """The index of shards that nobody made: enough for everything but reading."""
    records = [
        {
            "name": shard_name("train", number),
            "samples": size,
            "bytes": 1 << 30,
            "sha256": "0" * 64,
            "keys": [f"{number:04d}-{i:05d}" for i in range(size)],
            "members": {
                name: {"offset": list(range(512, 512 + size)), "size": [9000] * size, "crc32": [number] * size}
                for name in ("jpg", "mask.png", "json")
            },
        }
        for number, size in enumerate(sizes)
    ]
    folder.mkdir(exist_ok=True)
    write_index(folder, size=256, settings={}, made_with={}, records=records)
    return ShardIndex.load(folder, "train")


def real(folder: Path, sizes: Sequence[int]) -> ShardIndex:
    """Shards of photos of 8 pixels, each of one colour and named by it."""
    folder.mkdir()
    records, number = [], 0
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:7] = 255
    for shard, size in enumerate(sizes):
        with ShardWriter(folder / shard_name("train", shard)) as writer:
            for _ in range(size):
                photo = np.full((8, 8, 3), number % 250, np.uint8)
                writer.add(f"{number:05d}", {"jpg": simplejpeg.encode_jpeg(photo), "mask.png": encode_mask(mask)})
                number += 1
        records.append(writer.record)
    write_index(folder, size=8, settings={}, made_with={}, records=records)
    return ShardIndex.load(folder, "train")


def a_loader(index: ShardIndex, rank: int, world: int, per_process: int, seed: int = 0, **data: object) -> Loader:
    config = DataConfig(**data)  # type: ignore[arg-type]
    return Loader(config, index, seed=seed, rank=rank, world=world, per_process=per_process, device=CPU)


def global_batch(index: ShardIndex, world: int, total: int, step: int, **data: object) -> list[Draw]:
    """A step's draws of all ranks, one after the other."""
    loaders = (a_loader(index, rank, world, total // world, **data) for rank in range(world))
    return [draw for loader in loaders for draw in loader.draws(step)]


@pytest.mark.parametrize("window", [None, 3])
def test_a_global_batch_of_960_is_the_same_on_every_number_of_ranks_that_divides_it(tmp_path: Path, window: int | None):
    index = made_up(tmp_path, (977, 1, 350, 89))
    assert len(DIVISORS) == 28
    for step in (0, 1, 7):
        alone = global_batch(index, 1, 960, step, shuffle_window=window)
        assert len(alone) == 960
        for world in DIVISORS[1:13]:
            assert global_batch(index, world, 960, step, shuffle_window=window) == alone
    for world in DIVISORS[13:]:  # whoever has the first and the last places
        first = a_loader(index, 0, world, 960 // world, shuffle_window=window).draws(7)
        last = a_loader(index, world - 1, world, 960 // world, shuffle_window=window).draws(7)
        assert first + last == alone[: 960 // world] + alone[-(960 // world) :]


def test_any_set_batch_window_and_limit_reads_each_sample_once_an_epoch_on_any_ranks(tmp_path: Path):
    dice = random.Random(0)
    for case in range(60):
        sizes = [dice.choice((0, 1, 1, 2, 3, 5, 7, 11, 23)) for _ in range(dice.randint(1, 9))] + [1]
        index = made_up(tmp_path / str(case), sizes)
        window, limit = dice.choice((None, 1, 2, 3, 5)), dice.choice((None, 1, 4, 10_000))
        samples = min(len(index), limit or len(index))
        epochs, world, batch = dice.randint(1, 3), dice.choice((1, 2, 3, 4, 8)), dice.randint(1, 9)
        data = {"shuffle_window": window, "limit": limit}
        steps = steps_for(samples, epochs, batch * world)
        ranks = [a_loader(index, rank, world, batch, **data) for rank in range(world)]
        drawn = [[loader.draws(step) for loader in ranks] for step in range(steps)]
        assert {len(part) for step in drawn for part in step} == {batch}
        seen = Counter(draw for step in drawn for part in step for draw in part)
        for epoch in range(epochs):
            assert all(seen[Draw(epoch, sample)] == 1 for sample in range(samples)), (sizes, data, epoch)
        assert all(draw.index < samples and count == 1 for draw, count in seen.items())
        resume = dice.randrange(steps)
        again = [a_loader(index, rank, world, batch, **data) for rank in range(world)]
        assert [[loader.draws(step) for loader in again] for step in range(resume, steps)] == drawn[resume:]


@pytest.mark.parametrize("count", range(1, 8))
def test_shards_of_prime_sizes_read_by_any_ranks_and_workers_give_every_photo_once(tmp_path: Path, count: int):
    index = real(tmp_path / "shards", PRIMES[:count])
    for world in (1, 2, 3, 4):
        steps = steps_for(len(index), 2, 12)
        for workers in (0, 1, 2, 3):
            parts = [
                list(a_loader(index, rank, world, 12 // world, workers=workers).batches(0, steps))
                for rank in range(world)
            ]
            assert [len(part) for part in parts] == [steps] * world
            keys = [key for step in range(steps) for part in parts for key in part[step].keys]
            assert sorted(keys[: len(index)]) == sorted(keys[len(index) : 2 * len(index)]) == sorted(index.keys)
            for part in parts:
                for batch in part:
                    colours = ((batch.image[:, :, 0, 0].mean(1) + 1) * 127.5).round().int().tolist()
                    assert all(abs(c - int(key) % 250) <= 1 for c, key in zip(colours, batch.keys, strict=True))


# -------------------------------------------------------------------- a large set

SHARDS, EACH = 1000, 100


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 samples in 1,000 shards, each of which is the same file under another name."""
    folder = tmp_path_factory.mktemp("large") / "shards"
    real(folder, [EACH])
    record = next(
        json.loads(line) for line in (folder / "index.json").read_text().splitlines() if line.startswith('{"name"')
    )
    records = []
    for number in range(SHARDS):
        name = shard_name("train", number)
        if number:
            os.link(folder / record["name"], folder / name)
        records.append(record | {"name": name, "keys": [f"{number:04d}-{i:03d}" for i in range(EACH)]})
    write_index(folder, size=8, settings={}, made_with={}, records=records)
    return folder


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_index_of_100_000_samples_is_read_and_sought_in_no_time(large: Path):
    before = time.process_time()
    index = ShardIndex.load(large, "train")
    loaded = time.process_time()
    assert len(index) == SHARDS * EACH
    a_loader(index, 3, 8, 16).draws(123_456_789)
    sought = time.process_time()
    a_loader(index, 3, 8, 16, shuffle_window=64).draws(123_456_789)
    assert loaded - before < 2.0
    assert sought - loaded < 0.1 + 0.1  # making the loader, and the seek
    assert time.process_time() - sought < 0.1 + 0.1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not list open files and memory")
@pytest.mark.parametrize(("window", "steps", "opened"), [(None, 10_000, 256), (64, 4_000, 64)])
def test_thousands_of_steps_over_1_000_shards_hold_no_more_memory_and_few_files(
    large: Path, window: int | None, steps: int, opened: int
):
    loader = a_loader(ShardIndex.load(large, "train"), 0, 1, 1, workers=0, shuffle_window=window)
    files, most, memory = open_files(), 0, 0
    for step, _ in enumerate(loader.decoded(0, steps), 1):
        if step % 500 == 0:
            most = max(most, open_files() - files)
        if step == 2_000:
            memory = resident()
    assert most == opened <= shard_reader._OPEN_FILES
    assert resident() - memory <= 5 << 20


def test_10_000_steps_of_a_null_model_read_what_they_should(large: Path):
    loader = a_loader(ShardIndex.load(large, "train"), 1, 4, 8)
    seen = Counter(draw.index for step in range(10_000) for draw in loader.draws(step))
    assert sum(seen.values()) == 80_000 and max(seen.values()) <= 4  # 320,000 places of 3.2 epochs, a quarter of them
