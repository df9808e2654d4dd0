"""Stored masks that are chosen by their holes."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from inpaint_dist.data import mask_pool
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.mask_mixture import read_hole_ratios
from inpaint_dist.data.mask_pool import MaskPool
from inpaint_dist.data.sample_decoder import SampleDecoder
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UserError


def a_loader(
    shards: Path, *ranges: str, source: str = "pool", rank: int = 0, world: int = 1, workers: int = 0
) -> Loader:
    config = DataConfig(mask_source=source, hole_ratios=ranges, workers=workers, flip=False)
    index, cpu = ShardIndex.load(shards, "train"), torch.device("cpu")
    return Loader(config, index, seed=0, rank=rank, world=world, per_process=8 // world, device=cpu)


def drawn(loader: Loader, steps: int) -> torch.Tensor:
    return torch.cat([batch.mask for batch in loader.batches(0, steps)])


@pytest.fixture
def stored(shards: Path) -> list[torch.Tensor]:
    """All stored masks, the smallest hole first."""
    index = ShardIndex.load(shards, "train")
    decoder, found = SampleDecoder(index, "paired", 0), []
    for sample in range(len(index)):
        for number in range(2):
            bits = np.empty((index.size, -(-index.size // 8)), np.uint8)
            decoder._stored_mask(sample, number, bits)
            found.append(torch.from_numpy(np.unpackbits(bits, axis=1)[None, :, : index.size].astype(np.float32)))
    return sorted(found, key=lambda mask: float(mask.mean()))


def halves(stored: list[torch.Tensor]) -> tuple[str, str]:
    """Two ranges, of the smaller and of the larger holes."""
    middle = (float(stored[10].mean()) + float(stored[11].mean())) / 2
    return f"0-{middle:.6f}", f"3*{middle:.6f}-1"


def test_the_pool_gives_stored_masks_of_the_ranges_as_often_as_asked_for(shards: Path, stored: list[torch.Tensor]):
    masks = drawn(a_loader(shards, *halves(stored)), 50)
    whose = [next(number for number, one in enumerate(stored) if torch.equal(one, mask)) for mask in masks]
    assert sum(number > 10 for number in whose) == pytest.approx(300, abs=25)
    different = {one.numpy().tobytes() for one in stored}  # photos share masks
    assert len({stored[number].numpy().tobytes() for number in whose}) == len(different) > 5


def test_its_draws_are_the_same_whatever_the_ranks_and_workers(shards: Path, stored: list[torch.Tensor]):
    alone = list(a_loader(shards, *halves(stored)).batches(0, 6))
    parts = [list(a_loader(shards, *halves(stored), rank=rank, world=2, workers=2).batches(0, 6)) for rank in (0, 1)]
    for whole, *two in zip(alone, *parts, strict=True):
        assert torch.equal(whole.mask, torch.cat([one.mask for one in two]))
        assert whole.keys == two[0].keys + two[1].keys
    assert len({batch.mask.numpy().tobytes() for batch in alone}) == 6


def test_in_a_mixture_the_family_keeps_to_the_ranges_too(shards: Path):
    ratios = drawn(a_loader(shards, "0.3-0.5", source="pool+lama-train"), 20).mean((1, 2, 3))
    assert bool(((ratios >= 0.3) & (ratios <= 0.5)).all())


def test_a_range_of_which_there_are_no_masks_is_refused(shards: Path):
    with pytest.raises(
        UserError,
        match=r"--hole-ratios 0\.99-0\.995: of 22 stored masks that were looked at none .*they hide 0\.0\d+ to 0",
    ):
        a_loader(shards, "0.3-0.5", "0.99-0.995")


def test_a_mask_that_cannot_be_read_is_named_at_the_start_and_one_without_a_hole_is_left_out(
    shards: Path, stored: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(shards, tmp_path / "set")
    index = ShardIndex.load(tmp_path / "set", "train")
    member, tar = index.member(5, "mask.png"), tmp_path / "set" / index.shards[1].name
    data = bytearray(tar.read_bytes())
    data[member.offset + 60] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=rf"{tar}: {index.keys[5]}\.mask\.png is damaged"):
        a_loader(tmp_path / "set", *halves(stored))
    monkeypatch.setattr(SampleDecoder, "_stored_mask", lambda _, owner, which, out: out.fill(0 if owner % 2 else 240))
    assert {owner % 2 for owner, _ in a_loader(shards, "0-1").decoder._pool.masks} == {0}  # type: ignore[union-attr]


def test_of_a_large_set_some_are_looked_at_spread_over_all():
    counts = np.array([1, 0, 3] * 40_000, np.int32)
    asked = Counter[tuple[int, int]]()

    def share_of(sample: int, number: int) -> float | None:
        asked[sample, number] += 1
        return None if sample % 2 else (number + 1) / 4

    pool = MaskPool.measure(counts, 0, share_of)
    assert 0.9 * mask_pool.MEASURED < len(asked) <= mask_pool.MEASURED and set(asked.values()) == {1}
    assert all(number < counts[sample] for sample, number in asked)
    assert np.histogram([sample for sample, _ in asked], 10, (0, 120_000))[0].min() > 300
    assert {sample % 2 for sample, _ in pool.masks} == {0}
    assert pool.choose((0.7, 0.8), 12345)[1] == 2
    again = MaskPool.measure(counts, 0, lambda sample, number: 0.5)
    assert {*again.masks} == {*asked}
    nothing = MaskPool.measure(counts[:3], 0, lambda sample, number: share_of(1, number))
    ratios = read_hole_ratios(["0-1"])
    assert ratios is not None
    with pytest.raises(UserError, match="of 0 stored masks that"):
        nothing.check(ratios)
