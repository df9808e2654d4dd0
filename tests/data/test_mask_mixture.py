import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from inpaint_dist.chance import mix
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.mask_mixture import read_mixture
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError


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
