"""A sample that cannot be read is replaced by a function of the draw alone, counted and named; or ends the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from inpaint_dist.data.bad_samples import BadSample, BadSamples, SampleError, TooManyBadSamples
from inpaint_dist.data.loader import DataConfig, Loader, ValidationSet
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError, UserError

CPU = torch.device("cpu")
SEEN = tuple[tuple[str, ...], bytes, bytes]


def a_loader(shards: Path, *, rank: int = 0, world: int = 1, batch: int = 4, **data: object) -> Loader:
    index = ShardIndex.load(shards, "train")
    settings = DataConfig(**({"max_bad_samples": 20} | data))  # type: ignore[arg-type]
    return Loader(settings, index, seed=0, rank=rank, world=world, per_process=batch, device=CPU)


def seen(loader: Loader, start: int = 0, stop: int = 9) -> list[SEEN]:
    return [(b.keys, b.image.numpy().tobytes(), b.mask.numpy().tobytes()) for b in loader.batches(start, stop)]


def spoil(shards: Path, sample: int, extension: str = "jpg", split: str = "train") -> str:
    """Flip a byte of one member; returns the sample's key."""
    index = ShardIndex.load(shards, split)
    member = index.member(sample, extension)
    with (shards / index.shards[member.shard].name).open("r+b") as file:
        file.seek(member.offset + member.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0xFF]))
    return index.keys[sample]


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """The small shards with two photos of 11 spoiled, 2 and 7."""
    copy = Path(shutil.copytree(shards, tmp_path / "damaged"))
    spoil(copy, 2)
    spoil(copy, 7)
    return copy


def test_only_draws_of_a_bad_sample_change_and_an_epoch_keeps_its_length(shards: Path, damaged: Path):
    whole, mended = seen(a_loader(shards, batch=11), 0, 4), seen(a_loader(damaged, batch=11), 0, 4)
    bad = {ShardIndex.load(shards, "train").keys[sample] for sample in (2, 7)}
    replaced = 0
    for before, after in zip(whole, mended, strict=True):
        assert len(after[0]) == 11 and not bad & set(after[0])
        for place, key in enumerate(before[0]):
            pixels = [np.frombuffer(batch[1], np.float32).reshape(11, -1)[place] for batch in (before, after)]
            assert np.array_equal(*pixels) == (key not in bad)
            replaced += key in bad
    assert replaced == 8  # two samples in four epochs


def test_a_substitute_is_wholly_another_sample_mirrored_as_that_one_is(damaged: Path):
    loader = a_loader(damaged, batch=11)  # a batch an epoch, in which nine samples stand once and two stand in
    twice = 0
    for batch in loader.batches(0, 12):
        pairs: dict[str, set[bytes]] = {}
        for key, image, mask in zip(batch.keys, batch.image, batch.mask, strict=True):
            pairs.setdefault(key, set()).add(image.numpy().tobytes() + mask.numpy().tobytes())
        assert len(pairs) == 9 and all(len(seen_as) == 1 for seen_as in pairs.values())
        twice += len(batch.keys) - len(pairs)
    assert twice == 24


@pytest.mark.parametrize("workers", [1, 3])
def test_substitutes_are_the_same_with_any_workers_and_from_any_step_on(damaged: Path, workers: int):
    expected = seen(a_loader(damaged, workers=0))
    assert seen(a_loader(damaged, workers=workers)) == expected
    assert seen(a_loader(damaged, workers=workers), 4) == expected[4:]


@pytest.mark.parametrize("world", [2, 4])
def test_substitutes_are_the_same_on_any_number_of_ranks(damaged: Path, world: int):
    whole = seen(a_loader(damaged, batch=8))
    parts = [seen(a_loader(damaged, rank=rank, world=world, batch=8 // world)) for rank in range(world)]
    for step, (keys, image, mask) in enumerate(whole):
        assert sum((part[step][0] for part in parts), ()) == keys
        assert b"".join(part[step][1] for part in parts) == image
        assert b"".join(part[step][2] for part in parts) == mask


def test_a_sample_is_counted_once_however_often_it_is_met_and_with_the_batch_that_needed_it(damaged: Path):
    index = ShardIndex.load(damaged, "train")
    loader, counts = a_loader(damaged, batch=1, workers=2), []
    for _ in loader.batches(0, 33):
        counts.append(len(loader.bad))
    order = [draw.index for step in range(33) for draw in loader.draws(step)]
    expected = [len({2, 7} & set(order[: step + 1])) for step in range(33)]
    # A substitute may itself be bad, which brings its count forward; never back.
    assert counts[-1] == 2 and all(found >= least for found, least in zip(counts, expected, strict=True))
    assert counts[0] == expected[0]
    assert {(bad.shard, bad.key) for bad in loader.bad.new} == {
        (index.shards[index.shard_of[sample]].name, index.keys[sample]) for sample in (2, 7)
    }


def test_without_leave_the_first_ends_the_run_with_its_name_and_the_cure(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    key = spoil(copy, 3)
    with pytest.raises(TooManyBadSamples, match=rf"train-00000\d\.tar: {key}\.jpg is damaged") as caught:
        seen(a_loader(copy, max_bad_samples=DataConfig().max_bad_samples))
    assert "--max-bad-samples N" in str(caught.value) and len(str(caught.value).splitlines()) == 2


def test_one_more_than_allowed_ends_the_run_with_the_list(damaged: Path):
    key = spoil(damaged, 4)
    seen(a_loader(damaged, max_bad_samples=3))
    with pytest.raises(TooManyBadSamples, match="--max-bad-samples 2: 3 training samples cannot be read") as caught:
        seen(a_loader(damaged, max_bad_samples=2))
    assert key in str(caught.value) and len(str(caught.value).splitlines()) == 4


def test_a_long_list_is_cut():
    bad = [BadSample("a.tar", str(number), f"reason {number}") for number in range(40)]
    lines = str(TooManyBadSamples(5, bad)).splitlines()
    assert len(lines) == 14 and lines[-1] == "  and 28 more"


@pytest.mark.parametrize("source", ["paired", "pool"])
def test_a_mask_that_cannot_be_read_is_its_owners_fault(shards: Path, tmp_path: Path, source: str):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    key = spoil(copy, 3, "mask.png")
    loader = a_loader(copy, mask_source=source, batch=11)
    batches = seen(loader, 0, 8)
    assert {bad.key for bad in loader.bad.new} == {key} and "mask.png" in loader.bad.new[0].reason
    if source == "pool":  # its photo is whole and goes on being read, with other samples' masks
        assert any(key in batch[0] for batch in batches)


def test_a_family_of_masks_never_looks_at_a_stored_one(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    spoil(copy, 3, "mask.png")
    loader = a_loader(copy, mask_source="lama-train", batch=11)
    assert seen(loader) == seen(a_loader(shards, mask_source="lama-train", batch=11))
    assert not loader.bad.new


def test_a_missing_shard_costs_its_samples_and_no_step(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    index = ShardIndex.load(copy, "train")
    (copy / index.shards[0].name).unlink()
    loader = a_loader(copy, batch=11)
    assert len(seen(loader, 0, 6)) == 6
    lost = {key for key, shard in zip(index.keys, index.shard_of, strict=True) if shard == 0}
    assert {bad.key for bad in loader.bad.new} == lost
    assert all("cannot be opened" in bad.reason for bad in loader.bad.new)


def test_where_nothing_can_be_read_it_ends_and_says_so(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    for path in copy.glob("train-*.tar"):
        path.unlink()
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"cannot be opened.*\nnor can any of 100 samples drawn in its place"):
            seen(a_loader(copy, max_bad_samples=1000, workers=workers))


def test_substitutes_keep_to_the_limit_of_samples(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    spoil(copy, 0)
    loader = a_loader(copy, limit=3)
    assert {key for batch in seen(loader) for key in batch[0]} == set(loader.index.keys[1:3])


def test_the_ranks_agree_on_one_list_and_stop_alike():
    one, two = BadSamples(2, alone=False), BadSamples(2, alone=False)
    samples = [BadSample("a.tar", key, f"a.tar: {key} is damaged") for key in "xyz"]
    one.note(samples[:2])
    two.note(samples[1:2])
    for book in (one, two):
        assert [bad.key for bad in book.agree([samples[:2], samples[1:2]])] == ["x", "y"]
        book.check()
        book.note(samples[:2])  # met again
        assert len(book) == 2 and not book.new
    two.note(samples)  # one too many, and yet it goes on until all have heard of it
    two_alone = [samples[2]]
    for book in (one, two):
        assert book.agree([[], two_alone]) == two_alone
        with pytest.raises(TooManyBadSamples, match="2: 3 training samples") as caught:
            book.check()
        assert caught.value.on_every_rank
    again = BadSamples(3)
    again.load_state(json.loads(json.dumps(one.state())))
    again.note(samples)
    assert len(again) == 3 and not again.new and again.state() == one.state()


def test_an_error_survives_the_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(SampleError(BadSample("a.tar", "x", "a.tar: x is damaged"))))
    assert error.bad.key == "x" and str(error) == "a.tar: x is damaged"


def test_a_negative_limit_is_refused():
    with pytest.raises(UsageError, match="--max-bad-samples -1"):
        DataConfig(max_bad_samples=-1)


def test_evaluation_never_takes_another_photo_and_pictures_pass_over_bad_ones(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    key = spoil(copy, 0, split="val")
    validation = ValidationSet(ShardIndex.load(copy, "val"), CPU)
    with pytest.raises(UserError, match=key):
        validation.batch([1, 0])
    keys = validation.index.keys
    assert validation.spread(6).keys == tuple(keys[1:])
    assert validation.spread(2).keys == (keys[1], keys[2])
    assert ValidationSet(ShardIndex.load(shards, "val"), CPU).spread(2).keys == (keys[0], keys[2])
    for sample in range(1, 5):
        spoil(copy, sample, split="val")
    with pytest.raises(UserError, match=key):
        ValidationSet(ShardIndex.load(copy, "val"), CPU).spread(6)


def test_a_run_counts_names_and_remembers_them(damaged: Path, run_train: Callable[..., Path]):
    flags = ("--shards", str(damaged), "--batch-size", "4", "--report-every", "1", "--max-bad-samples", "5")
    flags += ("--eval-every", "99", "--sample-every", "99")
    run = run_train("--max-steps", "6", *flags, name="whole")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    counts = [row["data/bad_samples"] for row in rows if "g/loss" in row]
    assert len(counts) == 6 and counts == sorted(counts) and counts[-1] == 2
    log = (run / "log.txt").read_text()
    assert log.count(" bad sample: ") == 2 and "photo_" in log and "| bad 2" in log
    assert "note: 2 training samples could not be read" in log
    saved = json.loads((run / "checkpoints/step-0000006/state.json").read_text())["bad_samples"]
    assert len(saved) == 2
    run_train("--max-steps", "4", *flags, name="parts")
    parts = run_train("--max-steps", "6", *flags, name="parts")
    assert (parts / "log.txt").read_text().count(" bad sample: ") == 2  # named once, though met again after the resume
    folders = [folder / "checkpoints/step-0000006" for folder in (run, parts)]
    assert (folders[0] / "ema.safetensors").read_bytes() == (folders[1] / "ema.safetensors").read_bytes()
    assert json.loads((folders[1] / "state.json").read_text())["bad_samples"] == saved
    with pytest.raises(TooManyBadSamples, match="--max-bad-samples 1: 2 training samples"):
        run_train("--max-steps", "8", *flags, "--max-bad-samples", "1", name="parts")
