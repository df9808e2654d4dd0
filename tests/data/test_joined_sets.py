"""Several sets of shards as one: shares, orders, and that nothing of a run tells it from a single set."""

import re
import shutil
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from inpaint_dist.data.joined_sets import JoinedOrder, SetMixture, read_sets
from inpaint_dist.data.loader import DataConfig
from inpaint_dist.data.order import SampleOrder, order_of
from inpaint_dist.data.sources import Place, Sources, open_sources
from inpaint_dist.errors import UsageError, UserError


@pytest.fixture(scope="module")
def two(photos_and_masks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sets of 15 and 9 training photos in shards of 3 and 2, whose keys are the same; the second has two masks each."""
    from inpaint_dist.data.sharding import make_shards

    root = tmp_path_factory.mktemp("sets")
    make_shards(photos_and_masks.config(root / "a", samples_per_shard=3))
    make_shards(photos_and_masks.config(root / "b", samples_per_shard=2, val_fraction=0.5, masks_per_photo=2))
    return root / "a", root / "b"


def opened(shards: str, rank: int = 0, world: int = 1, **data: object) -> Sources:
    config = DataConfig(**{"shards": shards, "global_batch_size": 10, "workers": 0} | data)  # type: ignore[arg-type]
    place = Place(rank, world, torch.device("cpu"))
    return open_sources(config, place, seed=0, epochs=2, max_steps=None, parts=1)


def drawn_photos(sources: Sources, steps: int) -> list[bytes]:
    return [image.numpy().tobytes() for batch in sources.loader.batches(0, steps) for image in batch.image]


def test_weights_are_read_and_anything_else_is_one_set():
    sets = read_sets("7*shards/a+3*b+c/d")
    assert sets is not None
    assert (sets.places, sets.weights) == (("shards/a", "b+c/d"), (7, 3))
    assert str(sets) == "0.7 of shards/a and 0.3 of b+c/d"
    thirds = read_sets("1*a+1.0*b+1*/c d")
    assert thirds is not None and thirds.weights == (1, 1, 1) and thirds.places[2] == "/c d"
    for text in ("0.7*a+.3*b", "70*a+30*b", "14*a+6*b"):
        assert read_sets(text) == SetMixture(("a", "b"), (7, 3))
    for one in ("shards/a", "a+b", "1*a", "x/train-{000..009}.tar", "https://host/a", "pipe:cat 2*a+3*b", "a+3*b"):
        assert read_sets(one) is None
    for wrong, reason in (("1*a+2*a", "twice"), ("0*a+1*b", "a weight is 0"), ("1*a+1.0000001*b", "after 20,000,001")):
        with pytest.raises(UserError, match=reason):
            read_sets(wrong)


@pytest.mark.parametrize("weights", [(1, 1), (7, 3), (1, 2, 5), (333, 333, 334), (500_001, 499_999)])
def test_each_set_has_exactly_its_share_of_each_block_and_reads_its_own_epochs_whole(weights: tuple[int, ...]):
    orders = [SampleOrder(samples, seed) for seed, samples in enumerate([13, 29, 7][: len(weights)])]
    order = JoinedOrder(orders, weights, seed=5)
    drawn = list(order.draws(0, 3000))
    starts = np.cumsum([0, *(one.samples for one in orders)]).tolist()
    whose = [next(n for n, end in enumerate(starts[1:]) if draw.index < end) for draw in drawn]
    if sum(order.turns) < 100:
        for block in range(3000 // sum(order.turns)):
            turns = Counter(whose[block * sum(order.turns) : (block + 1) * sum(order.turns)])
            assert [turns[number] for number in range(len(weights))] == order.turns
    for number, own in enumerate(orders):
        mine = [draw for draw, who in zip(drawn, whose, strict=True) if who == number]
        indices = [draw.index - starts[number] for draw in mine]
        assert [*zip((draw.epoch for draw in mine), indices, strict=True)] == [
            (draw.epoch, draw.index) for draw in own.draws(0, len(mine))
        ]
    shares = np.array([whose.count(number) for number in range(len(weights))]) / 3000
    assert np.abs(shares - np.array(weights) / sum(weights)).max() < 0.03
    assert whose[:30] != sorted(whose[:30])


def test_the_draws_at_a_position_do_not_depend_on_where_reading_began():
    order = JoinedOrder([SampleOrder(13, 0), order_of([3, 4, 5, 6], 1, 2)], (5, 2), seed=1)
    whole = list(order.draws(0, 500))
    for start, stop in ((0, 0), (0, 1), (6, 8), (100, 250), (499, 500), (7, 14)):
        assert list(order.draws(start, stop)) == whole[start:stop]
    assert list(JoinedOrder(order.orders, (5, 2), seed=2).draws(0, 50)) != whole[:50]


def test_a_run_reads_both_sets_by_weight_the_same_on_any_ranks_and_workers(two: tuple[Path, Path]):
    shards = "7*{}+3*{}".format(*two)
    sources = opened(shards)
    batches = list(sources.loader.batches(0, 8))
    alone = [{*drawn_photos(opened(str(path), flip=False), 9)} for path in two]
    assert len(sources.loader.index) == sum(map(len, alone))  # type: ignore[union-attr]
    drawn = drawn_photos(opened(shards, flip=False), 8)
    assert {*drawn} == alone[0] | alone[1]
    draws = [sources.loader.draws(step) for step in range(8)]  # type: ignore[union-attr]
    assert all(sum(draw.index < len(alone[0]) for draw in step) == 7 for step in draws)
    first = [image for image, draw in zip(drawn, chain(*draws), strict=True) if draw.index < len(alone[0])]
    assert {*first} == alone[0]
    for world, workers in ((2, 2), (5, 1)):
        ranks = [opened(shards, rank, world, workers=workers).loader.batches(0, 8) for rank in range(world)]
        for whole, *parts in zip(batches, *ranks, strict=True):
            assert torch.equal(whole.image, torch.cat([part.image for part in parts]))
            assert torch.equal(whole.mask, torch.cat([part.mask for part in parts]))
    later = list(islice(opened(shards).loader.batches(5, 8), 3))
    assert all(torch.equal(a.image, b.image) for a, b in zip(later, batches[5:], strict=True))


def test_validation_is_that_of_both_and_the_log_names_their_shares(two: tuple[Path, Path]):
    sources = opened("1*{}+1*{}".format(*two))
    alone = [opened(str(path)).validation for path in two]
    assert sources.validation is not None
    assert len(sources.validation) == sum(len(one) for one in alone if one is not None)
    last = sources.validation.batch([len(sources.validation) - 1])
    assert alone[1] is not None
    assert torch.equal(last.mask, alone[1].batch([len(alone[1]) - 1]).mask)
    assert f"in 0.5 of {two[0]} and 0.5 of {two[1]}, {len(sources.validation)} for validation" in sources.notes[0]


def test_what_is_read_is_known_by_bytes_and_weights_not_by_folders(two: tuple[Path, Path], tmp_path: Path):
    first = opened("7*{}+3*{}".format(*two)).fingerprint
    shutil.copytree(two[0], tmp_path / "moved")
    assert opened(f"70*{tmp_path}/moved+30*{two[1]}").fingerprint == first
    assert opened("6*{}+3*{}".format(*two)).fingerprint != first
    assert opened("7*{1}+3*{0}".format(*two)).fingerprint != first


def test_a_damaged_photo_of_the_second_set_is_named_and_replaced(two: tuple[Path, Path], tmp_path: Path):
    shutil.copytree(two[1], tmp_path / "b")
    tar = tmp_path / "b/train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[600:700] = bytes(100)  # within the first photo
    tar.write_bytes(data)
    shards = f"1*{two[0]}+1*{tmp_path}/b"
    with pytest.raises(UserError, match=re.escape(f"{tar}: ")):
        list(opened(shards).loader.batches(0, 8))
    loader = opened(shards, max_bad_samples=1).loader
    assert len(list(loader.batches(0, 8))) == 8
    assert len(loader.bad) == 1


@pytest.mark.parametrize(
    ("shards", "options", "said"),
    [
        ("1*{0}+1*{0}", {}, "--shards .*: a set is there twice"),
        ("1*s3://me:secret@b/x+1*s3://me:secret@b/x", {}, r"--shards 1\*s3://\*\*\*@b/.*: a set is there twice"),
        ("1*{0}+1*{1}", {"limit": 5}, "--limit: is of one set"),
        ("1*{0}+1*{1}/none", {}, "none: no such folder of shards"),
        (
            "1*{0}+1*https://me:secret@host/set",
            {},
            r"--shards https://\*\*\*@host/set: several sets are read from folders",
        ),
        ("1*{0}+1*{1}/train-*.tar", {}, "several sets are read from folders"),
        ("1*{0}+1*{1}", {"size": 64}, "--size 64: the shards in 0.5 of .* hold pictures of 32 pixels"),
    ],
)
def test_what_cannot_be_joined_is_refused(two: tuple[Path, Path], shards: str, options: dict, said: str):
    with pytest.raises((UsageError, UserError), match=said) as refused:
        opened(shards.format(*two), **options)
    assert "secret" not in str(refused.value)


def test_sets_of_different_sizes_are_refused(two: tuple[Path, Path], photos_and_masks, tmp_path: Path):
    from inpaint_dist.data.sharding import make_shards

    make_shards(photos_and_masks.config(tmp_path / "c", size=24))
    with pytest.raises(UserError, match=r"holds pictures of 32 pixels, .*c of 24: make shards of one --size"):
        opened(f"1*{two[0]}+1*{tmp_path}/c")
