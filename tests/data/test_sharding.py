"""Photos and masks to shards: what goes where, what stays the same, and what is refused."""

import io
import json
import os
import tracemalloc
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from inpaint_dist.data import photo_copies, sharding
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.packed_masks import decode_packed_mask
from inpaint_dist.data.photos import decode_photo
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.sharding import Jobs, ShardingConfig, ShardingReport, make_shards
from inpaint_dist.data.sharding_plan import make_plan
from inpaint_dist.data.sharding_state import Unfinished
from inpaint_dist.data.shards import ShardIndex, mask_extension
from inpaint_dist.data.verification import verify
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import alone_in

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32


def jpeg(seed: int = 0, height: int = 40, width: int = 56, **options) -> bytes:
    y, x = np.mgrid[0:height, 0:width]
    photo = np.stack([x * 4 % 256, y * 5 % 256, np.full_like(x, seed * 9 % 256)], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def mask_png(left: int, size: int = SIZE) -> bytes:
    mask = np.zeros((size, size), np.uint8)
    mask[4:12, left : left + 8] = 255
    return cv2.imencode(".png", mask)[1].tobytes()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return put(tmp_path / "photos", {f"{number:02d}.jpg": jpeg(number) for number in range(24)})


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return put(tmp_path / "masks", {f"m{number}.png": mask_png(number) for number in range(16)})


def make(photos: object, masks: object, out: Path, **options) -> ShardingReport:
    options = {"size": SIZE, "workers": 1, "val_fraction": 0.25, **options}
    return make_shards(ShardingConfig(photos=(str(photos),), masks=(str(masks),), out=out, **options))


def sources(out: Path, split: str) -> list[str]:
    return [facts(out, split, i)["source"] for i in range(len(ShardIndex.load(out, split)))]


def facts(out: Path, split: str, i: int) -> dict:
    return json.loads(read(out, split, i, "json"))


def read(out: Path, split: str, i: int, extension: str) -> bytes:
    with ShardReader(ShardIndex.load(out, split)) as reader:
        return reader.read(i, extension)


def read_mask(out: Path, split: str, i: int, k: int = 0) -> np.ndarray:
    bits, width = decode_packed_mask(read(out, split, i, mask_extension(k)), "mask")
    return np.unpackbits(bits, axis=1, count=width)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_hold_every_photo_once_and_have_no_fault(photos: Path, masks: Path, tmp_path: Path):
    report = make(photos, masks, tmp_path / "out", samples_per_shard=7)
    assert (report.train + report.val, report.rejected) == (24, 0)
    assert report.val > 0
    everyone = sources(tmp_path / "out", "train") + sources(tmp_path / "out", "val")
    assert sorted(everyone) == sorted(path.name for path in photos.iterdir())
    assert verify(tmp_path / "out") == []
    assert sorted(everything(tmp_path / "out")) == [
        "index.json", "rejected.jsonl", "train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar",
    ]  # fmt: skip
    told = facts(tmp_path / "out", "train", 0)
    source = (photos / told["source"]).read_bytes()
    assert (told["width"], told["height"], told["sha256"]) == (56, 40, sha256(source).hexdigest())


def test_the_bytes_do_not_depend_on_the_workers_or_the_place(photos: Path, masks: Path, tmp_path: Path):
    put(photos, {"broken.jpg": jpeg()[:-99], "sub/näme.png": cv2.imencode(".png", np.eye(50) * 255)[1].tobytes()})
    put(masks, {"empty.png": mask_png(99)})
    for name, workers in (("one", 1), ("two", 2)):
        make(photos, masks, tmp_path / name, samples_per_shard=5, masks_per_photo=2, workers=workers)
    moved = photos.rename(tmp_path / "elsewhere")
    make(moved, masks, tmp_path / "moved", samples_per_shard=5, masks_per_photo=2)
    assert everything(tmp_path / "one") == everything(tmp_path / "two") == everything(tmp_path / "moved")
    assert not [name for name, data in everything(tmp_path / "one").items() if str(tmp_path).encode() in data]


def test_adding_photos_moves_none_to_another_split_and_changes_no_mask(photos: Path, masks: Path, tmp_path: Path):
    make(photos, masks, tmp_path / "before")
    put(photos, {f"more/{number}.jpg": jpeg(number) for number in range(30)})
    make(photos, masks, tmp_path / "after")
    for split in ("train", "val"):
        assert set(sources(tmp_path / "before", split)) <= set(sources(tmp_path / "after", split))
        after = {
            facts(tmp_path / "after", split, i)["source"]: i for i in range(len(sources(tmp_path / "after", split)))
        }
        for i, source in enumerate(sources(tmp_path / "before", split)):
            there = facts(tmp_path / "after", split, after[source])["masks"]
            assert facts(tmp_path / "before", split, i)["masks"] == there


def test_an_empty_val_split_never_comes_without_a_word(tmp_path: Path, masks: Path):
    few = put(tmp_path / "few", {f"{number}.jpg": jpeg(number) for number in range(3)})
    report = make(few, masks, tmp_path / "a", val_fraction=0.001)
    assert (report.train, report.val) == (2, 1)
    assert any("val is the one photo" in note for note in report.notes)
    report = make(few, masks, tmp_path / "b", val_fraction=0.0)
    assert report.val == 0
    assert any("val is empty, as --val-fraction 0 asks" in note for note in report.notes)
    one = put(tmp_path / "one", {"1.jpg": jpeg()})
    report = make(one, masks, tmp_path / "c")
    assert (report.train, report.val) == (1, 0)
    assert any("val is empty: there is only one photo" in note for note in report.notes)
    bad = put(tmp_path / "bad", {"x.jpg": b"?"})
    report = make(few, masks, tmp_path / "d", val=(str(bad),))
    assert any("val is empty: none of its 1 photos" in note for note in report.notes)


def test_a_val_set_that_is_named_is_the_val_split_and_leaves_train(photos: Path, masks: Path, tmp_path: Path):
    put(photos, {"val/a.jpg": jpeg(99), "val/b.jpg": jpeg(98)})
    put(photos, {"copy of a.jpg": jpeg(99)})
    report = make(photos, masks, tmp_path / "out", val=(str(photos / "val"),))
    assert (report.train, report.val) == (25, 2)
    assert sorted(sources(tmp_path / "out", "val")) == ["a.jpg", "b.jpg"]
    assert "2 photos of --val lie among PHOTOS too: train goes without them" in report.notes
    assert any(note.startswith("1 photos are in train and in val, byte for byte") for note in report.notes)


def test_photos_of_the_same_bytes_are_left_out_and_listed_where_that_is_asked_for(masks: Path, tmp_path: Path):
    twin = jpeg(1)[:-2] + b"\x00\xff\xd9"  # as long as its neighbour, but other bytes
    files = {"a.jpg": jpeg(1), "b/again.jpg": jpeg(1), "c.jpg": jpeg(2), "d.jpg": jpeg(2), "e.jpg": jpeg(3)}
    put(tmp_path / "p", {**files, "other.jpg": twin, "same size.jpg": jpeg(1)[:-2] + b"\x01\xff\xd9"})
    put(tmp_path / "v", {"z.jpg": jpeg(3)})
    report = make(tmp_path / "p", masks, tmp_path / "all", val=(str(tmp_path / "v"),))
    assert (report.train, report.val) == (7, 1)
    assert any("--drop-duplicates leaves them out" in note for note in report.notes)
    report = make(tmp_path / "p", masks, tmp_path / "out", val=(str(tmp_path / "v"),), drop_duplicates=True)
    assert (report.train, report.val, report.rejected) == (4, 1, 3)
    assert sorted(sources(tmp_path / "out", "train")) == ["a.jpg", "c.jpg", "other.jpg", "same size.jpg"]
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert {line["photo"]: line["reason"] for line in lines} == {
        "b/again.jpg": "the same bytes as a.jpg",
        "d.jpg": "the same bytes as c.jpg",
        "e.jpg": "the same bytes as z.jpg",
    }
    assert report.notes == ("3 photos are copies of others, byte for byte, and were left out",)
    report = make(tmp_path / "p", masks, tmp_path / "hash", drop_duplicates=True)
    assert (report.train + report.val, report.rejected) == (5, 2)


def test_only_photos_of_one_size_are_read_to_find_copies(masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "p", {"a.jpg": jpeg(1), "b.jpg": jpeg(1), "c.jpg": jpeg(1) + b"more", "d.jpg": b"?"})
    read, real = [], photo_copies.PhotoReader.read

    def counting(self, source):
        read.append(source.path)
        return real(self, source)

    monkeypatch.setattr(photo_copies.PhotoReader, "read", counting)
    config = ShardingConfig(
        photos=(str(tmp_path / "p"),), masks=(str(masks),), out=tmp_path / "out", drop_duplicates=True
    )
    assert make_plan(config).copies == [("b.jpg", "the same bytes as a.jpg")]
    assert sorted(read) == ["a.jpg", "b.jpg"]


def test_a_jpeg_of_the_size_is_copied_byte_for_byte_less_its_metadata(tmp_path: Path, masks: Path):
    exif = Image.Exif()
    exif[271] = "SECRET CAMERA"
    plain, tagged = jpeg(1, SIZE, SIZE), jpeg(1, SIZE, SIZE, exif=exif, comment=b"SECRET")
    put(tmp_path / "p", {"plain.jpg": plain, "tagged.jpg": tagged})
    report = make(tmp_path / "p", masks, tmp_path / "out", val_fraction=0.0)
    assert report.copied == 2
    assert [read(tmp_path / "out", "train", i, "jpg") for i in range(2)] == [plain, plain]
    make(tmp_path / "p", masks, tmp_path / "kept", val_fraction=0.0, keep_metadata=True)
    kept = {
        facts(tmp_path / "kept", "train", i)["source"]: read(tmp_path / "kept", "train", i, "jpg") for i in range(2)
    }
    assert kept == {"plain.jpg": plain, "tagged.jpg": tagged}


def test_a_jpeg_of_the_size_is_not_copied_where_its_pixels_are_not_upright_rgb(tmp_path: Path, masks: Path):
    turned = Image.Exif()
    turned[274] = 6
    grey, ink = io.BytesIO(), io.BytesIO()
    Image.open(io.BytesIO(jpeg(1, SIZE, SIZE))).convert("L").save(grey, "JPEG")
    Image.open(io.BytesIO(jpeg(1, SIZE, SIZE))).convert("CMYK").save(ink, "JPEG")
    files = {
        "turned.jpg": jpeg(1, SIZE, SIZE, exif=turned),
        "grey.jpg": grey.getvalue(),
        "ink.jpg": ink.getvalue(),
        "wide.jpg": jpeg(1, SIZE, SIZE + 1),
        "cut.jpg": jpeg(1, SIZE, SIZE)[:-50],
        "hollow.jpg": jpeg(1, SIZE, SIZE)[:-50] + b"\xff\xd9",
    }
    put(tmp_path / "p", files)
    report = make(tmp_path / "p", masks, tmp_path / "out", val_fraction=0.0)
    assert (report.copied, report.train, report.rejected) == (0, 4, 2)
    for i, source in enumerate(sources(tmp_path / "out", "train")):
        written = read(tmp_path / "out", "train", i, "jpg")
        assert simplejpeg.decode_jpeg_header(written)[:3] == (SIZE, SIZE, "YCbCr")
        if source == "turned.jpg":
            expected = np.rot90(simplejpeg.decode_jpeg(files[source]), -1)
            assert np.abs(decode_photo(written, "x").astype(int) - expected).mean() < 8


def test_each_photo_that_is_left_out_is_named_with_its_reason(photos: Path, masks: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("good.jpg", jpeg(77))
        archive.writestr("../evil.jpg", jpeg(78))
    put(photos, {"cut.jpg": jpeg()[:-99], "page.jpg": b"<html>", "empty.png": b"", "new.heic": b"ftypheic"})
    config = ShardingConfig(
        photos=(str(photos), str(tmp_path / "z.zip")), masks=(str(masks),), out=tmp_path / "out", size=SIZE, workers=1
    )
    report = make_shards(config)
    assert (report.train + report.val, report.rejected) == (25, 4)
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    reasons = {line["photo"]: line["reason"] for line in lines if "photo" in line}
    assert set(reasons) == {"cut.jpg", "page.jpg", "empty.png", "new.heic"}
    assert "Premature end" in reasons["cut.jpg"]
    assert reasons["empty.png"] == "the file is empty"
    assert {"file": "z.zip:../evil.jpg", "reason": "its name leads out of the archive"} in lines
    assert str(tmp_path) not in (tmp_path / "out/rejected.jsonl").read_text()


def test_a_shard_of_which_no_photo_can_be_used_is_not_written(masks: Path, tmp_path: Path):
    put(tmp_path / "p", {"good.jpg": jpeg(), "bad.jpg": b"?"})
    report = make(tmp_path / "p", masks, tmp_path / "out", val_fraction=0.0, samples_per_shard=1)
    assert (report.train, report.shards) == (1, 1)
    assert verify(tmp_path / "out") == []
    put(tmp_path / "q", {"bad.jpg": b"?", "worse.jpg": b"!"})
    with pytest.raises(UserError, match=r"none of 2 train photos can be used; (bad|worse).jpg: not a picture"):
        make(tmp_path / "q", masks, tmp_path / "none", val_fraction=0.0)
    assert everything(tmp_path / "none") == {}


def test_two_photos_of_one_key_are_an_error_that_names_both(masks: Path, tmp_path: Path):
    put(tmp_path / "p", {"a b.jpg": jpeg(), "a.b.jpg": jpeg()})
    with pytest.raises(UserError, match=r"a b.jpg and a.b.jpg would both get the key a_b: rename one"):
        make(tmp_path / "p", masks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_of_the_pool_are_drawn_by_key_each_at_most_once(photos: Path, masks: Path, tmp_path: Path):
    put(masks, {"black.png": mask_png(99), "text.png": b"?"})
    report = make(photos, masks, tmp_path / "out", masks_per_photo=5)
    used = set()
    for i in range(report.train):
        names = facts(tmp_path / "out", "train", i)["masks"]
        assert len(set(names)) == len(names) == 5
        for k, name in enumerate(names):
            stored = cv2.imread(str(masks / name), cv2.IMREAD_GRAYSCALE)
            assert (read_mask(tmp_path / "out", "train", i, k) == stored // 255).all()
        used |= set(names)
    assert used == {f"m{number}.png" for number in range(16)}
    assert "2 masks could not be used: rejected.jsonl says why" in report.notes
    with pytest.raises(UserError, match=r"--masks-per-photo 19: --masks holds only 18"):
        make(photos, masks, tmp_path / "more", masks_per_photo=19)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_photos_name_gets_the_photos_own_geometry(tmp_path: Path, orientation: int):
    """The photo shows its own hole in white: where the two part, the mask was turned, cropped or resized otherwise."""
    drawn = np.zeros((80, 120), np.uint8)
    drawn[10:40, 25:60] = 255
    drawn[50:60, 70:110] = 255
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(drawn).convert("RGB").save(buffer, "JPEG", quality=95, exif=exif)
    put(tmp_path / "p", {"x/a.jpg": buffer.getvalue()})
    put(tmp_path / "m", {"x/a_mask.png": cv2.imencode(".png", drawn)[1].tobytes()})
    make(tmp_path / "p", tmp_path / "m", tmp_path / "out", pairing="name")
    photo = decode_photo(read(tmp_path / "out", "train", 0, "jpg"), "photo")[..., 0]
    mask = read_mask(tmp_path / "out", "train", 0)
    border = cv2.dilate(mask, np.ones((3, 3))) != cv2.erode(mask, np.ones((3, 3)))
    assert not (((photo > 127) != (mask > 0)) & ~border).any()
    told = facts(tmp_path / "out", "train", 0)
    assert (told["width"], told["height"]) == ((120, 80) if orientation < 5 else (80, 120))


def test_a_mask_drawn_on_the_upright_photo_is_not_turned_again(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6
    put(tmp_path / "p", {"a.jpg": jpeg(1, 40, 60, exif=exif)})
    mask = np.zeros((60, 40), np.uint8)
    mask[10:30, 5:15] = 255
    put(tmp_path / "m", {"a.png": cv2.imencode(".png", mask)[1].tobytes()})
    make(tmp_path / "p", tmp_path / "m", tmp_path / "out", pairing="name", size=40)
    assert (read_mask(tmp_path / "out", "train", 0) == mask[10:50] // 255).all()


def test_pairing_by_name_leaves_out_photos_without_a_fitting_mask(tmp_path: Path):
    put(tmp_path / "p", {f"{name}.jpg": jpeg(1, SIZE, SIZE) for name in ("good", "alone", "other_size", "no_hole")})
    put(tmp_path / "m", {"good.png": mask_png(3), "other_size.png": mask_png(3, 48), "no_hole.png": mask_png(99)})
    put(tmp_path / "m", {"good_mask1.png": mask_png(4)})
    report = make(tmp_path / "p", tmp_path / "m", tmp_path / "out", pairing="name", val_fraction=0.0, masks_per_photo=3)
    assert sources(tmp_path / "out", "train") == ["good.jpg"]
    assert ShardIndex.load(tmp_path / "out", "train").mask_count(0) == 2
    assert "1 of 4 photos have no mask of their name" in report.notes
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    reasons = {line["photo"]: line["reason"] for line in lines}
    assert reasons["alone.jpg"] == "no mask has its name"
    assert reasons["other_size.jpg"] == "other_size.png: the mask is 48x48 and its photo 32x32"
    assert reasons["no_hole.jpg"] == "no_hole.png: the mask has no hole within the crop"
    with pytest.raises(UserError, match=r"no mask has the name of a photo .*--pairing pool"):
        make(tmp_path / "p", put(tmp_path / "n", {"x.png": mask_png(3)}), tmp_path / "none", pairing="name")


def test_masks_that_look_inverted_are_refused_before_anything_is_written(photos: Path, tmp_path: Path):
    black = {
        f"m{k}.png": cv2.imencode(".png", 255 - cv2.imdecode(np.frombuffer(mask_png(k), np.uint8), 0))[1]
        for k in (1, 2)
    }
    masks = put(tmp_path / "black", {name: data.tobytes() for name, data in black.items()})
    with pytest.raises(UsageError, match=r"94% of a mask is hole .*did you mean --invert-masks\? --allow-large-holes"):
        make(photos, masks, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    make(photos, masks, tmp_path / "inverted", invert_masks=True)
    assert read_mask(tmp_path / "inverted", "train", 0).sum() == 64
    make(photos, masks, tmp_path / "large", allow_large_holes=True)
    assert read_mask(tmp_path / "large", "train", 0).sum() == SIZE * SIZE - 64


def test_masks_of_which_none_can_be_used_are_an_error(photos: Path, tmp_path: Path):
    ones = put(tmp_path / "ones", {"a.png": cv2.imencode(".png", np.eye(SIZE, dtype=np.uint8))[1].tobytes()})
    with pytest.raises(UserError, match=r"--masks: none can be used; a.png: the mask holds 0 and 1, not 0 and 255"):
        make(photos, ones, tmp_path / "out")


def test_the_same_command_again_does_nothing_and_another_is_refused(photos: Path, masks: Path, tmp_path: Path):
    make(photos, masks, tmp_path / "out")
    before = everything(tmp_path / "out")
    report = make(photos, masks, tmp_path / "out", workers=2)
    assert any("of these names and sizes were there already: nothing was done" in note for note in report.notes)
    with pytest.raises(UserError, match=r"shards of other settings \(quality 95, now 90\): name another folder"):
        make(photos, masks, tmp_path / "out", quality=90)
    put(photos, {"new.jpg": jpeg()})
    with pytest.raises(UserError, match=r"other settings \(photos 24 files \(\w{8}\), now 25 files"):
        make(photos, masks, tmp_path / "out")
    assert everything(tmp_path / "out") == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/train-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"has tars without an index.json"):
        make(photos, masks, tmp_path / "foreign")


def test_a_finished_folder_that_lost_a_shard_is_mended(photos: Path, masks: Path, tmp_path: Path):
    make(photos, masks, tmp_path / "out", samples_per_shard=7)
    before = everything(tmp_path / "out")
    (tmp_path / "out/train-000001.tar").unlink()
    make(photos, masks, tmp_path / "out", samples_per_shard=7)
    assert everything(tmp_path / "out") == before


def test_a_damaged_index_is_not_written_over(photos: Path, masks: Path, tmp_path: Path):
    make(photos, masks, tmp_path / "out")
    (tmp_path / "out/index.json").write_text("{")
    with pytest.raises(UserError, match=r"--out .*out has a damaged index.json: remove the folder, or name another"):
        make(photos, masks, tmp_path / "out")


def test_an_interrupted_run_goes_on_from_the_shards_that_are_done(
    photos: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make(photos, masks, tmp_path / "whole", samples_per_shard=5)
    out, real, made = tmp_path / "out", sharding.run_jobs, []

    def stopping(jobs, *rest):
        for number, result in enumerate(real(jobs, *rest)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    def counting(jobs, *rest):
        made.extend(jobs)
        return real(jobs, *rest)

    monkeypatch.setattr(sharding, "run_jobs", stopping)
    with pytest.raises(UserError, match="stopped; the same command goes on"):
        make(photos, masks, out, samples_per_shard=5)
    assert not (out / "index.json").exists()
    with pytest.raises(UserError, match="its making did not finish"):
        ShardIndex.load(out, "train")
    with pytest.raises(UserError, match=r"other settings \(size 32, now 16\)"):
        make(photos, masks, out, samples_per_shard=5, size=16)
    (out / "train-000001.tar").write_bytes(b"changed meanwhile")
    (out / "train-000009.tar.part").write_bytes(b"half")
    monkeypatch.setattr(sharding, "run_jobs", counting)
    make(photos, masks, out, samples_per_shard=5)
    assert everything(out) == everything(tmp_path / "whole")
    assert "train-000000.tar" not in {job.path.name for job in made}
    assert "train-000001.tar" in {job.path.name for job in made}


def test_two_runs_into_one_folder_do_not_mix(photos: Path, masks: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    taken = pytest.raises(UserError, match="another make_shards is writing there")
    with alone_in(tmp_path / "out", ValueError()), taken:
        make(photos, masks, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(photos: Path, masks: Path, tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"--out .*locked/out cannot be written \(Permission denied\)"):
        make(photos, masks, tmp_path / "locked/out")


def test_an_out_that_is_a_file_is_an_error(photos: Path, masks: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file cannot be written"):
        make(photos, masks, tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "--size 4: from 8 to 8192"),
        ({"quality": 0}, "--quality 0: from 1 to 100"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0: from 0 to below 1"),
        ({"masks_per_photo": 0}, "--masks-per-photo 0: from 1 to 99"),
        ({"samples_per_shard": 0}, "--samples-per-shard 0: from 1"),
        ({"workers": -1}, "--workers -1: from 0"),
        ({"photos": ()}, "PHOTOS is missing"),
        ({"masks": ()}, "--masks is missing"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_their_flag(tmp_path: Path, options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        ShardingConfig(**{"photos": ("p",), "masks": ("m",), "out": tmp_path, **options})


def test_photos_smaller_than_the_size_are_enlarged_and_counted(photos: Path, masks: Path, tmp_path: Path):
    report = make(photos, masks, tmp_path / "out", size=48)
    assert report.enlarged == 24
    assert "24 photos were smaller than 48 pixels and were enlarged" in report.notes
    assert verify(tmp_path / "out") == []


def test_a_plan_holds_no_object_for_each_photo_and_a_shards_photos_are_listed_when_their_turn_comes(
    masks: Path, tmp_path: Path
):
    held: list[int] = []
    for count in (100, 2100):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:08d}_photo.jpg").touch()
        config = ShardingConfig(photos=(str(folder),), masks=(str(masks),), out=tmp_path / "out", samples_per_shard=50)
        tracemalloc.start()
        plan = make_plan(config)
        jobs = Jobs(Unfinished(tmp_path, plan.settings, {}), plan, 50)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert (held[1] - held[0]) / 2000 < 90  # objects take some 800
    keys = [item.key for job in jobs for item in job.items]
    assert sorted(keys) == [f"{number:08d}_photo" for number in range(2100)]
    assert jobs.photos == 2100
    assert max(len(job.items) for job in jobs) == 50
