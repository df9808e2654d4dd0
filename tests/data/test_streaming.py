import gzip
import io
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from inpaint_dist import train
from inpaint_dist.data.loader import DataConfig
from inpaint_dist.data.mask_mixture import read_hole_ratios
from inpaint_dist.data.photos import fit_mask, upright
from inpaint_dist.data.sources import Place, Sources, open_sources
from inpaint_dist.data.streaming import StreamingLoader, find_shards, is_stream
from inpaint_dist.errors import UserError

SIZE = 16
CPU = torch.device("cpu")


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def write_shards(folder: Path, counts: Sequence[int], *, masks: bool = True, photo: bytes | None = None) -> str:
    """Shards by webdataset's own writer, each photo of one colour; returns their brace pattern."""
    folder.mkdir(parents=True)
    number = 0
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4:12, 2:9] = 255
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"part-{shard:03d}.tar"), encoder=False) as writer:
            for _ in range(count):
                sample = {
                    "__key__": f"photo{number:03d}",
                    "png": photo or png(np.full((SIZE, SIZE, 3), number, np.uint8)),
                }
                writer.write(sample | ({"mask.png": png(mask)} if masks else {}))
                number += 1
    return str(folder / f"part-{{000..{len(counts) - 1:03d}}}.tar")


def compress(pattern: str) -> str:
    """Gzip the shards of a pattern; returns theirs."""
    for name in find_shards(pattern):
        Path(f"{name}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
        Path(name).unlink()
    return f"{pattern}.gz"


def a_loader(pattern: str, rank: int = 0, world: int = 1, **settings: object) -> StreamingLoader:
    defaults = {"mask_source": "paired", "size": SIZE, "flip": False, "seed": 1, "per_process": 1, "workers": 0}
    place = {"rank": rank, "world": world, "device": CPU}
    return StreamingLoader(find_shards(pattern), **(defaults | place | settings))  # type: ignore[arg-type]


def one_epoch(pattern: str, world: int, workers: int) -> list[list[str]]:
    """What each consumer reads in epoch 0, asked of the streams themselves."""
    seen = []
    for consumer in range(world * workers):
        stream = a_loader(pattern)._stream
        seen.append([str(sample["__key__"]) for sample in stream._epoch(0, consumer, world * workers)])
    return seen


@pytest.mark.parametrize("counts", [[9], [3, 4], [2, 3, 2, 5, 1]], ids=["1-shard", "2-shards", "5-shards"])
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 1), (2, 2)])
def test_each_sample_of_an_epoch_goes_to_one_consumer(tmp_path: Path, counts: list[int], world: int, workers: int):
    seen = one_epoch(write_shards(tmp_path / "shards", counts), world, workers)
    assert sorted(key for keys in seen for key in keys) == [f"photo{i:03d}" for i in range(sum(counts))]
    assert all(seen)


@pytest.mark.parametrize("counts", [[9], [1, 0, 1, 1]], ids=["1-shard", "an-empty-shard"])
def test_few_shards_starve_no_rank_and_no_worker(tmp_path: Path, counts: list[int]):
    pattern, steps = write_shards(tmp_path / "shards", counts), 12
    for rank in range(2):
        keys = [batch.keys[0] for batch in a_loader(pattern, rank, 2, workers=2).batches(0, steps)]
        assert len(keys) == steps
        assert len(set(keys)) > 1


def test_over_many_epochs_two_ranks_see_every_sample_equally_often(tmp_path: Path):
    pattern = write_shards(tmp_path / "shards", [8])
    seen = Counter(
        key
        for rank in range(2)
        for batch in a_loader(pattern, rank, 2, per_process=4).batches(0, 5)
        for key in batch.keys
    )
    assert set(seen.values()) == {5}
    assert len(seen) == 8


def test_photos_and_masks_arrive_by_the_conventions(tmp_path: Path):
    batch = next(a_loader(write_shards(tmp_path / "shards", [6]), per_process=4).batches(0, 1))
    assert batch.image.shape == (4, 3, SIZE, SIZE)
    for image, mask, key in zip(batch.image, batch.mask, batch.keys, strict=True):
        assert torch.allclose(image, torch.tensor(int(key[-3:]) / 127.5 - 1.0))
        assert mask[0, 5, 3] == 1
        assert mask.sum() == 8 * 7


def a_mask_of(tmp_path: Path, orientation: int, mask: np.ndarray) -> np.ndarray:
    """What arrives of a mask beside a JPEG that is stored 20 high and 30 wide, with that EXIF orientation."""
    photo, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(photo, "JPEG", exif=exif)
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "a", "jpg": photo.getvalue(), "mask.png": png(mask)})
    return next(a_loader(str(tmp_path / "a.tar")).batches(0, 1)).mask[0, 0].numpy() * 255


DRAWN = np.zeros((20, 30), np.uint8)
DRAWN[2:8, 4:18] = 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_turns_with_the_photo_as_stored(orientation: int, tmp_path: Path):
    expected = fit_mask(upright(DRAWN, orientation), SIZE)
    assert np.array_equal(a_mask_of(tmp_path, orientation, DRAWN), expected)


@pytest.mark.parametrize("mask", [DRAWN.T.copy(), DRAWN[:, :20]], ids=["on the upright photo", "for no photo"])
def test_a_mask_that_was_not_drawn_on_the_photo_as_stored_stays_as_it_is(mask: np.ndarray, tmp_path: Path):
    assert np.array_equal(a_mask_of(tmp_path, 6, mask), fit_mask(mask, SIZE))


def test_masks_of_a_family_need_none_in_the_shards(tmp_path: Path):
    pattern = write_shards(tmp_path / "shards", [4], masks=False)
    batch = next(a_loader(pattern, mask_source="center", per_process=2).batches(0, 1))
    assert 0 < float(batch.mask.mean()) < 1
    with pytest.raises(UserError, match=r"part-000\.tar: sample photo00\d has no mask\.png; use --mask-source"):
        next(a_loader(pattern).batches(0, 1))


def test_the_order_differs_between_epochs_and_between_starts(tmp_path: Path):
    pattern = write_shards(tmp_path / "shards", [12])

    def keys(start: int) -> list[str]:
        return [batch.keys[0] for batch in a_loader(pattern).batches(start, start + 24)]

    first = keys(0)
    assert first == keys(0)
    assert first[:12] != first[12:]
    assert sorted(first[:12]) == sorted(first[12:])
    assert keys(6) != first  # a run often interrupted would see the same first samples for ever


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_one_line_that_names_shard_and_sample(tmp_path: Path, workers: int):
    pattern = write_shards(tmp_path / "shards", [3], photo=b"not a picture")
    with pytest.raises(UserError, match=r"part-000\.tar: photo00\d") as caught:
        list(islice(a_loader(pattern, workers=workers, per_process=2).batches(0, 9), 9))
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_file_that_is_no_tar_is_named(tmp_path: Path):
    pattern = write_shards(tmp_path / "shards", [3])
    (tmp_path / "shards" / "part-000.tar").write_bytes(b"<html>" * 999)
    with pytest.raises(UserError, match=r"part-000\.tar"):
        next(a_loader(pattern).batches(0, 1))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_a_shard_is_closed_when_it_cannot_be_read_and_not_when_memory_is_tidied_up(tmp_path: Path):
    pattern = write_shards(tmp_path / "shards", [3])
    path = tmp_path / "shards" / "part-000.tar"
    path.write_bytes(b"<html>" * 999)
    with pytest.raises(UserError) as caught:  # which holds the traceback
        next(a_loader(pattern, workers=0).batches(0, 1))
    assert path not in [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert caught.value


def test_too_few_samples_for_the_consumers_is_said_with_its_cure(tmp_path: Path):
    pattern = write_shards(tmp_path / "shards", [1])
    with pytest.raises(UserError, match=r"fewer samples than processes x workers; lower --workers"):
        list(a_loader(pattern, rank=1, world=2).batches(0, 1))


def test_patterns_files_and_globs_are_streams_and_folders_are_not(tmp_path: Path):
    pattern = write_shards(tmp_path / "shards", [1, 1])
    assert find_shards(pattern) == find_shards(f"{tmp_path}/shards/part-*.tar")
    assert find_shards(f"{tmp_path}/shards/part-001.tar") == find_shards(pattern)[1:]
    assert is_stream(pattern)
    assert is_stream("x.tar")
    assert not is_stream(str(tmp_path / "shards"))


@pytest.mark.parametrize("place", ["pipe:cat x.tar", "https://example.org/{0..3}.tar", "gs://bucket/x.tar?a=b"])
def test_commands_and_urls_of_tars_are_streams_and_need_a_flag(place: str):
    assert is_stream(place)
    with pytest.raises(UserError, match=r"^--shards .*: add --allow-(remote|pipe)"):
        DataConfig(shards=place)
    assert not is_stream("https://example.org/folder?sig=a*b{c}.tar")


def test_a_shard_that_is_not_there_is_named(tmp_path: Path):
    write_shards(tmp_path / "shards", [1])
    with pytest.raises(UserError, match=r"no such file: .*part-001\.tar"):
        find_shards(f"{tmp_path}/shards/part-{{000..001}}.tar")


def test_a_length_in_steps_is_required_and_the_weaker_promise_is_told(tmp_path: Path):
    pattern = compress(write_shards(tmp_path / "shards", [4]))

    def open_them(max_steps: int | None, **more: int) -> Sources:
        config = DataConfig(shards=pattern, size=SIZE, batch_size=2, **more)
        return open_sources(config, Place(0, 1, CPU), seed=0, epochs=3, max_steps=max_steps, parts=1)

    with pytest.raises(UserError, match="--max-steps"):
        open_them(None)
    with pytest.raises(UserError, match="--max-bad-samples 1: compressed tars are streamed"):
        open_them(7, max_bad_samples=1)
    sources = open_them(7)
    assert sources.total_steps == 7
    assert any("not exact" in note for note in sources.notes)


def test_training_runs_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Callable[..., list[str]]):
    pattern = compress(write_shards(tmp_path / "shards", [5]))
    train.main(
        tiny("--shards", pattern, "--size", str(SIZE), "--max-steps", "3", "--batch-size", "2", out=tmp_path / "run")
    )
    assert "epochs are not exact" in capsys.readouterr().out
    assert (tmp_path / "run" / "generator.safetensors").is_file()


@pytest.fixture
def tiny() -> Callable[..., list[str]]:
    def flags(*more: str, out: Path) -> list[str]:
        networks = ["--generator.channels", "4", "8", "--discriminator.channels", "4", "8"]
        return ["unet", "--output-dir", str(out), *networks, "--report-to", "none", "--threads", "1", *more]

    return flags


def test_streamed_photos_get_holes_of_the_shares_asked_for(tmp_path: Path):
    pattern = write_shards(tmp_path / "theirs", [9])
    ratios = read_hole_ratios(("0.3-0.4",))
    loader = a_loader(pattern, mask_source="lama-train", hole_ratios=ratios)
    shares = [float(batch.mask.mean()) for batch in loader.batches(0, 9)]
    assert all(0.3 <= share <= 0.4 for share in shares) and len(set(shares)) > 1
    with pytest.raises(UserError, match=r"--hole-ratios 0\.5-0\.6"):
        a_loader(pattern, mask_source="center", hole_ratios=read_hole_ratios(("0.5-0.6",)))
