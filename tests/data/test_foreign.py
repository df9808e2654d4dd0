"""Tars that others made load like our own: exact epochs, exact resume, the pixels that webdataset would give."""

import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
import webdataset
from PIL import Image

from inpaint_dist import train
from inpaint_dist.batch import image_to_uint8
from inpaint_dist.data import foreign_index
from inpaint_dist.data.foreign_index import can_be_indexed, index_foreign
from inpaint_dist.data.foreign_tar import walk_foreign
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.photos import decode_mask, decode_photo, fit_mask, fit_photo
from inpaint_dist.data.shards import ShardError, ShardIndex
from inpaint_dist.data.sources import Place, Sources, open_sources
from inpaint_dist.data.streaming import StreamingLoader, find_shards
from inpaint_dist.data.tar import BLOCK, END, header, padded
from inpaint_dist.errors import UserError

SIZE = 16
CPU = torch.device("cpu")


def picture(number: int, height: int = 23, width: int = 31) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def a_mask(number: int, height: int = 23, width: int = 31) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[5 : 12 + number % 6, 9 : 15 + number % 5] = 255
    mask[0, 0] = 127  # not hole: the threshold is above 127
    return mask


def encoded(pixels: np.ndarray, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"jpg": "JPEG", "jpeg": "JPEG"}.get(kind, kind.upper()), **options)
    return buffer.getvalue()


def samples(count: int, start: int = 0) -> list[dict[str, object]]:
    """Photos of several kinds, sizes and EXIF orientations, with masks of 8 bits."""
    made: list[dict[str, object]] = []
    for number in range(start, start + count):
        kind = ("png", "jpg", "webp", "bmp", "jpeg")[number % 5]
        exif = Image.Exif()
        exif[274] = 1 + number % 8
        options = {"exif": exif} if kind in ("jpg", "jpeg") else {}
        sides = (SIZE, SIZE) if number % 3 == 0 else (23, 31 + number)
        made.append(
            {
                "__key__": f"photo{number:03d}",
                kind: encoded(picture(number, *sides), kind, **options),
                "mask.png": encoded(a_mask(number, *sides)),
                "cls": b"3",
            }
        )
    return made


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    """17 samples in shards of 5 by webdataset's own ShardWriter."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "part-%03d.tar"), maxcount=5, encoder=False, verbose=0) as writer:
        for sample in samples(17):
            writer.write(sample)
    return str(folder / "part-{000..003}.tar")


def index_of(pattern: str, *, masks: bool = True, keep: bool = False) -> ShardIndex:
    return index_foreign(find_shards(pattern), SIZE, masks=masks, keep=keep)


def a_loader(pattern: str, **settings: object) -> Loader:
    place = {"seed": 0, "rank": 0, "world": 1, "per_process": 17, "device": CPU}
    data = {name: settings.pop(name) for name in list(settings) if name not in place}
    return Loader(DataConfig(**data), index_of(pattern), **(place | settings))  # type: ignore[arg-type]


def streamed(pattern: str) -> StreamingLoader:
    place = {"rank": 0, "world": 1, "per_process": 17, "device": CPU, "workers": 0}
    return StreamingLoader(find_shards(pattern), mask_source="paired", size=SIZE, flip=False, seed=1, **place)  # type: ignore[arg-type]


def by_key(batch: object) -> dict[str, tuple[bytes, bytes]]:
    return {
        key: (image.numpy().tobytes(), mask.numpy().tobytes())
        for key, image, mask in zip(batch.keys, batch.image, batch.mask, strict=True)  # type: ignore[attr-defined]
    }


def test_shards_of_webdatasets_writer_give_the_same_pixels_indexed_and_streamed(pattern: str):
    ours = by_key(next(a_loader(pattern, flip=False).batches(0, 1)))
    theirs = by_key(next(streamed(pattern).batches(0, 1)))
    assert len(ours) == 17
    assert ours == theirs


def test_photos_and_masks_of_any_size_are_cut_to_the_centre_and_fitted(tmp_path: Path):
    photo, mask = encoded(picture(1, 40, 60)), encoded(a_mask(1, 40, 60))
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        writer.write({"__key__": "a", "png": photo, "mask.png": mask})
    batch = next(a_loader(str(path), flip=False, per_process=1).batches(0, 1))
    expected = fit_photo(decode_photo(photo, "a"), SIZE)
    assert np.array_equal(image_to_uint8(batch.image)[0].numpy(), expected)
    assert np.array_equal(batch.mask[0, 0].numpy() * 255, fit_mask(decode_mask(mask, "a"), SIZE))


def test_a_jpeg_of_the_very_size_is_decoded_as_our_own_are(tmp_path: Path):
    photo = simplejpeg.encode_jpeg(picture(1, SIZE, SIZE), quality=90)
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "a", "jpg": photo, "mask.png": encoded(a_mask(1, SIZE, SIZE))})
    batch = next(a_loader(str(tmp_path / "a.tar"), flip=False, per_process=1).batches(0, 1))
    assert np.array_equal(image_to_uint8(batch.image)[0].numpy(), simplejpeg.decode_jpeg(photo, "RGB"))


def test_epochs_are_exact_and_a_resume_sees_what_the_whole_run_would_have_seen(pattern: str):
    whole = list(a_loader(pattern, per_process=4).batches(0, 17))
    keys = [key for batch in whole for key in batch.keys]
    for epoch in range(4):
        assert sorted(keys[17 * epoch : 17 * epoch + 17]) == [f"photo{number:03d}" for number in range(17)]
    resumed = list(a_loader(pattern, per_process=4, workers=2).batches(9, 17))
    for before, after in zip(whole[9:], resumed, strict=True):
        assert before.keys == after.keys
        assert torch.equal(before.image, after.image) and torch.equal(before.mask, after.mask)


def test_the_pool_of_masks_works_too(pattern: str):
    batches = a_loader(pattern, mask_source="pool").batches(0, 3)
    assert len({mask for batch in batches for _, mask in by_key(batch).values()}) > 17


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read_as_tarfile_reads_them(tmp_path: Path, kind: int):
    path = tmp_path / "a.tar"
    long = "d" * 60 + "/" + "e" * 90
    names = ["a.jpg", "dir/b.png", f"{long}.jpg"] + ([] if kind == tarfile.USTAR_FORMAT else ["größe " * 30 + ".png"])
    with tarfile.open(path, "w", format=kind) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 600 * number, 1.5 if kind == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd" + "x" * 150 * (kind != tarfile.USTAR_FORMAT)
        tar.addfile(link)
    with path.open("rb") as file, tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
        assert [tuple(entry) for entry in walk_foreign(file)] == expected
    assert len(expected) == len(names)


def test_a_size_that_octal_cannot_hold_is_read(tmp_path: Path):
    block = bytearray(header("a.jpg", 0))
    block[124:136] = b"\x80" + (700).to_bytes(11, "big")
    (tmp_path / "a.tar").write_bytes(sealed(block) + bytes(padded(700)) + END)
    with (tmp_path / "a.tar").open("rb") as file:
        assert [entry.size for entry in walk_foreign(file)] == [700]


def sealed(block: bytearray) -> bytes:
    """A header with the checksum that fits."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_members_of_a_sample_need_not_follow_one_another(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in [(f"{n}.png", encoded(picture(n))) for n in range(3)] + [
            (f"{n}.mask.png", encoded(a_mask(n))) for n in range(3)
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index = index_of(str(tmp_path / "a.tar"))
    assert index.keys == ["0", "1", "2"] and [index.mask_count(i) for i in range(3)] == [1, 1, 1]


def test_keys_that_every_shard_counts_anew_are_told_apart_by_their_shard(tmp_path: Path):
    for name in ("x.tar", "y.tar"):
        with webdataset.TarWriter(str(tmp_path / name), encoder=False) as writer:
            for sample in samples(2):
                writer.write(sample)
    index = index_of(str(tmp_path / "?.tar"))
    assert index.keys == ["x.tar/photo000", "x.tar/photo001", "y.tar/photo000", "y.tar/photo001"]


def test_a_sample_without_photo_or_mask_is_refused_before_the_first_step(tmp_path: Path):
    bare = str(tmp_path / "bare.tar")
    with webdataset.TarWriter(bare, encoder=False) as writer:
        for sample in samples(3):
            writer.write({name: value for name, value in sample.items() if name != "mask.png"})
    with pytest.raises(UserError, match=r"bare.tar: sample photo000 has no mask.png, nor have 2 others; use --mask-s"):
        index_of(bare)
    assert len(index_of(bare, masks=False)) == 3
    with webdataset.TarWriter(bare, encoder=False) as writer:
        writer.write({"__key__": "a", "json": b"{}", "txt": b"x"})
    with pytest.raises(ShardError, match=r"bare.tar: sample a has no photo among its members \(json, txt\)"):
        index_of(bare)


# -------------------------------------------------------------------- the index that is kept


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob(".inpaint_dist-*.json"))


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The shards that were walked over; and no cache of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: list[str] = []
    real = foreign_index.scan

    def counted(path: Path, name: str) -> dict:
        seen.append(name)
        return real(path, name)

    monkeypatch.setattr(foreign_index, "scan", counted)
    return seen


def test_tars_are_walked_over_once_and_again_where_they_changed(pattern: str, scans: list[str]):
    first = index_of(pattern, keep=True)
    folder = first.folder
    assert len(scans) == 4 and len(kept(folder)) == 1
    again = index_of(pattern, keep=True)
    assert len(scans) == 4
    assert again.keys == first.keys and again.fingerprint == first.fingerprint
    assert all(np.array_equal(again.columns[name].offset, first.columns[name].offset) for name in first.columns)
    path = folder / "part-001.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples(3, start=50):
            writer.write(sample)
    changed = index_of(pattern, keep=True)
    assert scans[4:] == ["part-001.tar"]
    assert len(changed) == 15 and changed.fingerprint != first.fingerprint
    os.utime(folder / "part-002.tar", ns=(1, 1))  # the same bytes, copied: walked over, and still the same run's data
    assert index_of(pattern, keep=True).fingerprint == changed.fingerprint
    assert scans[5:] == ["part-002.tar"]
    index_of(pattern, keep=True)
    assert len(scans) == 6


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    pattern: str, scans: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = foreign_index.written_whole

    def refusing(path: Path, **options: bool):
        if path.parent.name == "theirs":
            raise PermissionError(13, "read-only", str(path))
        return real(path, **options)

    monkeypatch.setattr(foreign_index, "written_whole", refusing)
    index_of(pattern, keep=True)
    index_of(pattern, keep=True)
    assert len(scans) == 4 and not kept(tmp_path / "theirs")
    assert [path.name[:7] for path in (tmp_path / "cache/inpaint_dist").iterdir()] == ["shards-"]


def test_where_nothing_can_be_kept_the_tars_are_read_all_the_same(
    pattern: str, scans: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cache").write_text("a file where the cache should be")
    monkeypatch.setattr(foreign_index, "alone_in", lambda folder, taken: (_ for _ in ()).throw(taken))
    assert len(index_of(pattern, keep=True)) == 17
    assert len(index_of(pattern, keep=True)) == 17 and len(scans) == 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [],
        lambda lines: ["null", *lines[1:]],
        lambda lines: [lines[0].replace("1}", "2}"), *lines[1:]],
        lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]],
        lambda lines: [lines[0], *(line.replace('"offset":[', '"offset":[-5,') for line in lines[1:])],
        lambda lines: [lines[0], *(edited(line, "offset", 1 << 40) for line in lines[1:])],
        lambda lines: [lines[0], *(edited(line, "size", 1 << 40) for line in lines[1:])],
        lambda lines: [lines[0], *(edited(line, "size", "x") for line in lines[1:])],
        lambda lines: [lines[0], *(line.replace('"members":{"', '"members":{"x') for line in lines[1:])],
        lambda lines: [lines[0], *("[]" for line in lines[1:])],
        lambda lines: [lines[0], *(line.replace("photo000", "\\n") for line in lines[1:])],
        lambda lines: ["\0\0", "\udcff"],
    ],
)
def test_a_kept_index_that_makes_no_sense_is_made_anew(pattern: str, scans: list[str], damage: Callable):
    first = index_of(pattern, keep=True)
    path = kept(first.folder)[0]
    whole = path.read_text()
    path.write_text("\n".join(damage(whole.splitlines())), errors="surrogateescape")
    assert index_of(pattern, keep=True).fingerprint == first.fingerprint
    assert len(scans) == 8 and path.read_text() == whole


def edited(line: str, column: str, value: object) -> str:
    record = json.loads(line)
    for member in record["members"].values():
        member[column][-1] = value
    return json.dumps(record)


# -------------------------------------------------------------------- tars that are damaged, or worse


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    parts = [header(name, len(data)) + data + bytes(padded(len(data)) - len(data)) for name, data in members]
    return b"".join(parts) + END


GOOD = [("a.png", b"p" * 700), ("a.mask.png", b"m" * 100), ("b.png", b"q" * 513), ("b.mask.png", b"n" * 600)]


def with_field(at: int, data: bytes, member: int = 2) -> bytes:
    """The good tar with some bytes of one header changed, and a checksum that fits again."""
    whole = bytearray(tar_of(GOOD))
    start = [0, 1536, 2560, 4096][member]
    block = whole[start : start + BLOCK]
    block[at : at + len(data)] = data
    whole[start : start + BLOCK] = sealed(block)
    return bytes(whole)


def pax(records: bytes) -> bytes:
    block = bytearray(header("pax.x", len(records)))
    block[156:157] = b"x"
    return sealed(block) + records + bytes(padded(len(records)) - len(records)) + tar_of(GOOD)


DAMAGED = {
    "empty": (b"", "byte 0: the archive stops without its end mark"),
    "html": (b"<html>" * 500, "byte 0: the header's checksum .* is no number"),
    "cut in a header": (tar_of(GOOD)[:2700], r"byte 2560: the file ends inside a header \(140"),
    "cut at a header": (tar_of(GOOD)[:2560], "byte 2560: the archive stops without its end mark"),
    "cut in data": (tar_of(GOOD)[:3500], r"byte 2560: b\.png of 513 bytes runs past the file's end at 3500"),
    "cut in the end": (tar_of(GOOD)[:-512], "the archive's end mark is cut short"),
    "a flipped bit": (tar_of(GOOD)[:2570] + b"\x11" + tar_of(GOOD)[2571:], "byte 2560: the header's checksum"),
    "a zeroed header": (tar_of(GOOD)[:2560] + bytes(512) + tar_of(GOOD)[3072:], "byte 2560: .*followed by data"),
    "two archives": (tar_of(GOOD) + tar_of(GOOD), "the archive's end mark is followed by data"),
    "a negative size": (with_field(124, b"-0000000001\0"), "byte 2560: .*is no number"),
    "a negative size in base 256": (with_field(124, b"\xff" * 12), "byte 2560: .*is negative"),
    "a huge size": (with_field(124, b"77777777777\0"), "byte 2560: .*(claims|runs past)"),
    "a huge size in base 256": (with_field(124, b"\x80" + b"\x3f" * 11), "byte 2560: .*claims"),
    "an unknown kind": (with_field(156, b"Z"), r"byte 2560: b\.png is of the unknown kind"),
    "a sparse file": (with_field(156, b"S"), r"byte 2560: b\.png is of the unknown kind"),
    "a member twice": (tar_of([*GOOD, ("a.png", b"again")]), r"a\.png is there twice"),
    "a pax header without sense": (pax(b"99 path=x\n"), "byte 0: the PAX header makes no sense"),
    "a pax header without end": (pax(b"11 path=abcd"), "byte 0: the PAX header makes no sense"),
    "a pax size without sense": (
        pax(b"13 size=-512\n"),
        "PAX header's size '-512' is no number",
    ),
    "a pax size past the end": (pax(b"17 size=99999999\n"), "runs past the file's end"),
    "a pax sparse file": (pax(b"22 GNU.sparse.major=1\n"), "sparse"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tar_is_refused_with_its_name_and_the_byte(tmp_path: Path, name: str):
    data, reason = DAMAGED[name]
    path = tmp_path / "bad.tar"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=reason) as caught:
        index_of(str(path))
    assert str(caught.value).startswith(f"{path}: byte ")


def test_a_long_name_that_claims_gigabytes_is_refused(tmp_path: Path):
    block = bytearray(header("long.name", 0))
    block[124:136], block[156:157] = b"\x80" + struct.pack(">IQ", 0, 1 << 33)[1:], b"L"
    (tmp_path / "a.tar").write_bytes(sealed(block) + tar_of(GOOD))
    with pytest.raises(ShardError, match=r"a.tar: byte 0: .*claims 8589934592 bytes, more than 1048576"):
        index_of(str(tmp_path / "a.tar"))


def test_a_shard_that_goes_away_or_changes_after_the_start_is_named(pattern: str):
    loader = a_loader(pattern)
    (loader.index.folder / "part-001.tar").unlink()
    with pytest.raises(UserError, match=r"part-001\.tar cannot be opened"):
        next(loader.batches(0, 1))


# -------------------------------------------------------------------- a run


def open_them(pattern: str, **settings: object) -> Sources:
    config = DataConfig(shards=pattern, size=SIZE, batch_size=4, **settings)  # type: ignore[arg-type]
    return open_sources(config, Place(0, 1, CPU), seed=0, epochs=3, max_steps=None, parts=1)


def test_a_run_counts_epochs_over_them_and_says_what_it_cannot_promise(pattern: str):
    sources = open_them(pattern)
    assert (sources.total_steps, sources.size) == (13, SIZE)  # ceil(3 x 17 / 4)
    assert any("4 tars have no checksums" in note for note in sources.notes)
    assert open_them(pattern, limit=5).total_steps == 4
    validated = open_them(pattern, val_shards=pattern)
    assert validated.validation is not None and len(validated.validation) == 17
    assert validated.validation.batch([0]).image.shape == (1, 3, SIZE, SIZE)


def test_compressed_tars_cannot_be_indexed(pattern: str, tmp_path: Path):
    assert can_be_indexed(find_shards(pattern))
    for name in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"a.tar.{name}", f"w:{name}"):
            pass
        assert not can_be_indexed([*find_shards(pattern), str(tmp_path / f"a.tar.{name}")])
    with pytest.raises(UserError, match=r"--val-shards .*compressed"):
        open_them(pattern, val_shards=str(tmp_path / "a.tar.gz"))
    with pytest.raises(UserError, match=r"--val-shards .*no such file"):
        open_them(pattern, val_shards=str(tmp_path / "nothing.tar"))


def test_a_training_goes_on_over_them_wherever_they_lie(pattern: str, tmp_path: Path, tiny: tuple[str, ...]):
    flags = ["unet", "--size", str(SIZE), "--batch-size", "4", "--output-dir", str(tmp_path / "run"), *tiny]
    train.main([*flags, "--shards", pattern, "--max-steps", "1"])
    moved = (tmp_path / "theirs").rename(tmp_path / "moved")
    train.main([*flags, "--shards", str(moved / "*.tar"), "--max-steps", "2"])
    assert (tmp_path / "run/checkpoints/step-0000002").is_dir()
    assert "going on from" in (tmp_path / "run/log.txt").read_text()
