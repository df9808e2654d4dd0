import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from inpaint_dist.chance import mix
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.mask_mixture import read_mixture
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError, UserError


def masks(shards: Path, source: str, workers: int = 0) -> list[bytes]:
    """The mask of each draw of four epochs."""
    config = DataConfig(mask_source=source, flip=False, workers=workers)
    index, cpu = ShardIndex.load(shards, "train"), torch.device("cpu")
    loader = Loader(config, index, seed=0, rank=0, world=1, per_process=11, device=cpu)
    return [mask.numpy().tobytes() for batch in loader.batches(0, 4) for mask in batch.mask]


def test_weights_are_the_shares_of_draws():
    mixture = read_mixture("1*paired+2.5*lama-train+.5*pool")
    assert mixture.weights == (250_000, 625_000, 125_000) and mixture.stored
    drawn = Counter(mixture.choose(mix(0, draw)) for draw in range(40_000))
    assert drawn["paired"] == pytest.approx(10_000, abs=300)
    assert drawn["lama-train"] == pytest.approx(25_000, abs=300)
    for family in ("center", "center+mat-small"):  # a mixture of families is a family
        assert read_mixture(family).names == (family,) and not read_mixture(family).stored
    assert read_mixture("center+mat-small+pool").weights == (333_333, 333_334, 333_333)


def test_each_draw_of_a_mixture_is_what_its_source_alone_would_give(shards: Path):
    mixed = masks(shards, "paired+mat-small")
    alone = [masks(shards, source) for source in ("paired", "mat-small")]
    whose = [mask == first for mask, first in zip(mixed, alone[0], strict=True)]
    assert all(m == (a if own else b) for own, m, a, b in zip(whose, mixed, *alone, strict=True))
    assert 10 < sum(whose) < 34
    assert len({tuple(whose[epoch * 11 : epoch * 11 + 11]) for epoch in range(4)}) > 1
    assert masks(shards, "paired+mat-small", workers=3) == mixed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lama", "choose paired, pool or a family. No mask family is called 'lama'"),
        ("paired+2*lama", "No mask family is called 'lama'"),
        ("paired+", "a name is missing"),
        ("x*paired+pool", "No mask family is called"),
        ("0*paired+pool", "a weight is 0"),
        ("0*paired", "a weight is 0"),
        ("paired+2*paired", "twice"),
        ("paired+100000000*pool", "a millionth"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(text: str, reason: str):
    with pytest.raises(UsageError, match=f"--mask-source {re.escape(text)}: .*{reason}"):
        DataConfig(mask_source=text)


RANGES = ("0.1-0.2", "3*0.4-0.6")


def a_loader(shards: Path, *, rank: int = 0, world: int = 1, workers: int = 0, **data: object) -> Loader:
    config = DataConfig(**{"mask_source": "lama-train", "hole_ratios": RANGES, "workers": workers} | data)  # type: ignore[arg-type]
    index, cpu = ShardIndex.load(shards, "train"), torch.device("cpu")
    return Loader(config, index, seed=0, rank=rank, world=world, per_process=8 // world, device=cpu)


def test_holes_fill_the_shares_asked_for_as_often_as_asked_for(shards: Path):
    ratios = torch.cat([batch.mask.mean((1, 2, 3)) for batch in a_loader(shards).batches(0, 50)])
    small, large = (ratios >= 0.1) & (ratios <= 0.2), (ratios >= 0.4) & (ratios <= 0.6)
    assert bool((small | large).all()) and len(ratios) == 400
    assert int(large.sum()) == pytest.approx(300, abs=25)
    free = torch.cat([b.mask.mean((1, 2, 3)) for b in a_loader(shards, hole_ratios=()).batches(0, 50)])
    assert bool((free > 0.6).any()) and bool(((free > 0.2) & (free < 0.4)).any())


def test_their_draws_are_the_same_whatever_the_ranks_and_workers_and_move_nothing_else(shards: Path):
    alone = [b.mask for b in a_loader(shards).batches(0, 6)]
    parts = [[b.mask for b in a_loader(shards, rank=rank, world=2, workers=2).batches(0, 6)] for rank in (0, 1)]
    assert all(torch.equal(whole, torch.cat(two)) for whole, *two in zip(alone, *parts, strict=True))
    free = list(a_loader(shards, hole_ratios=()).batches(0, 6))
    for ours, theirs in zip(a_loader(shards).batches(0, 6), free, strict=True):
        assert ours.keys == theirs.keys and torch.equal(ours.image, theirs.image)
        assert not torch.equal(ours.mask, theirs.mask)


@pytest.mark.parametrize(
    ("words", "source", "said"),
    [
        (("0.2-0.1",), "center", r"--hole-ratios 0\.2-0\.1: 0\.2-0\.1 is no range"),
        (("10-20",), "center", "10-20 is no range of shares"),
        (("much",), "center", "much is no range"),
        (("0*0.1-0.2", "0.2-0.3"), "center", "a weight is 0"),
        (("0.1-0.2",), "paired", "--hole-ratios with --mask-source paired: .* give pool, or a family"),
        (("0.1-0.2",), "1*paired+1*center", "a photo's own masks have the holes they have"),
    ],
)
def test_ranges_that_cannot_be_drawn_are_refused(words: tuple[str, ...], source: str, said: str):
    with pytest.raises(UsageError, match=said):
        DataConfig(hole_ratios=words, mask_source=source)


def test_a_range_that_the_family_never_meets_is_refused_before_the_first_batch(shards: Path):
    with pytest.raises(UserError, match=r"--hole-ratios 0\.5-0\.6: .*out of reach"):
        a_loader(shards, mask_source="center", hole_ratios=("0.2-0.3", "0.5-0.6"))
