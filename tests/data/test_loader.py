import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from inpaint_dist.batch import image_to_uint8
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.photos import decode_photo
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.tracking.meter import Meter

CPU = torch.device("cpu")


def a_loader(shards: Path, *, rank: int = 0, world: int = 1, batch: int = 4, seed: int = 0, **data: object) -> Loader:
    index = ShardIndex.load(shards, "train")
    return Loader(DataConfig(**data), index, seed=seed, rank=rank, world=world, per_process=batch, device=CPU)


def digest(batches: list) -> list[tuple]:
    return [(b.keys, b.image.numpy().tobytes(), b.mask.numpy().tobytes()) for b in batches]


def test_a_batch_holds_the_photos_and_masks_of_its_keys(shards: Path):
    loader = a_loader(shards, flip=False)
    batch = next(loader.batches(0, 1))
    assert batch.image.shape == (4, 3, 32, 32) and batch.mask.shape == (4, 1, 32, 32)
    for place, draw in enumerate(loader.draws(0)):
        data = loader.decoder.reader.read(draw.index, loader.index.extension(draw.index))
        expected = decode_photo(data, "photo")
        assert np.array_equal(image_to_uint8(batch.image)[place].numpy(), expected)
        assert batch.keys[place] == loader.index.keys[draw.index]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("source", ["paired", "pool", "lama-train", "1*center+2*ellipses:count=3"])
def test_batches_are_the_same_with_any_number_of_threads(shards: Path, workers: int, source: str):
    alone = list(a_loader(shards, workers=0, mask_source=source).batches(0, 7))
    threaded = list(a_loader(shards, workers=workers, mask_source=source).batches(0, 7))
    assert digest(alone) == digest(threaded)


def test_starting_in_the_middle_gives_what_the_whole_run_would_have_seen(shards: Path):
    whole = list(a_loader(shards).batches(0, 9))
    assert digest(list(a_loader(shards).batches(5, 9))) == digest(whole[5:])


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_parts_joined_are_one_processes_batch(shards: Path, world: int):
    whole = list(a_loader(shards, batch=8).batches(0, 4))
    parts = [list(a_loader(shards, rank=r, world=world, batch=8 // world).batches(0, 4)) for r in range(world)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].image for part in parts]), batch.image)
        assert torch.equal(torch.cat([part[step].mask for part in parts]), batch.mask)


def test_batches_kept_are_not_overwritten_by_later_ones(shards: Path):
    """The buffers that threads decode into are reused; what was handed out must not be."""
    first, *_ = kept = list(a_loader(shards, workers=2).batches(0, 8))
    again = next(a_loader(shards, workers=2).batches(0, 1))
    assert torch.equal(first.image, again.image) and len(kept) == 8


def test_photo_and_mask_are_mirrored_together_and_half_of_the_time(shards: Path):
    plain = {b.keys[0]: b for b in a_loader(shards, batch=1, flip=False).batches(0, 11)}
    flipped = []
    for batch in a_loader(shards, batch=1, flip=True).batches(0, 11 * 6):
        same = plain[batch.keys[0]]
        mirrored = torch.equal(batch.image, same.image.flip(3)) and not torch.equal(batch.image, same.image)
        assert mirrored or torch.equal(batch.image, same.image)
        flipped.append(mirrored)
    assert 0.3 < np.mean(flipped) < 0.7


def test_a_paired_photos_masks_take_turns_and_a_pool_draws_anew_each_epoch(shards: Path):
    def masks_of_first_key(source: str) -> set[bytes]:
        batches = list(a_loader(shards, batch=1, flip=False, mask_source=source).batches(0, 11 * 8))
        return {b.mask.numpy().tobytes() for b in batches if b.keys == batches[0].keys}

    assert len(masks_of_first_key("paired")) == 2
    assert len(masks_of_first_key("pool")) > 2
    assert len(masks_of_first_key("mat-small")) == 8


def test_a_limit_uses_the_first_samples_only(shards: Path):
    loader = a_loader(shards, limit=3)
    keys = {key for batch in loader.batches(0, 6) for key in batch.keys}
    assert keys == set(loader.index.keys[:3])


def test_a_batch_larger_than_the_set_works(shards: Path):
    batch = next(a_loader(shards, batch=30).batches(0, 1))
    assert len(set(batch.keys)) == 11 and len(batch.keys) == 30


def test_a_damaged_sample_stops_the_loader_by_name(shards: Path, tmp_path: Path):
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    index = ShardIndex.load(copy, "train")
    member = index.member(0, index.extension(0))
    with (copy / index.shards[member.shard].name).open("r+b") as file:
        file.seek(member.offset + member.size // 2)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(UserError, match=index.keys[0]):
        list(a_loader(copy, workers=2).batches(0, 3))


def test_batch_sizes_are_checked_against_processes_and_parts():
    assert DataConfig().per_process(4, 2) == 8
    assert DataConfig(global_batch_size=24).per_process(4, 3) == 6
    for config, world, parts in ((DataConfig(global_batch_size=10), 4, 1), (DataConfig(batch_size=6), 1, 4)):
        with pytest.raises(UsageError, match="not a multiple"):
            config.per_process(world, parts)
    with pytest.raises(UsageError, match="one of the two"):
        DataConfig(batch_size=1, global_batch_size=1)
    with pytest.raises(UsageError, match="--mask-source lama"):
        DataConfig(mask_source="lama")
    with pytest.raises(UsageError, match=r"--mask-source objects:nowhere: .*no such file or folder"):
        DataConfig(mask_source="objects:nowhere")


def test_a_wait_for_the_device_is_no_wait_for_data(shards: Path):
    """A device that is four batches behind holds the next one up: the loader says for how long."""

    class Late:
        def synchronize(self) -> None:
            time.sleep(0.05)

    loader, meter = a_loader(shards, workers=0), Meter(4, 9)
    loader._handed_out.extend([(Late(), [])] * 4)  # type: ignore[list-item]
    assert sum(1 for _ in meter.waiting(loader.batches(0, 1), lambda: loader.device_behind)) == 1
    assert loader.device_behind >= 0.05
    assert meter.read(1)["data_wait"] < 0.6


def test_a_decoder_goes_to_other_processes(shards: Path):
    decoder = a_loader(shards).decoder
    assert pickle.loads(pickle.dumps(decoder)).read_photo(0) == decoder.read_photo(0)
