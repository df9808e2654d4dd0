"""The format: what is written is what others and we read, and damage never passes unseen."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from inpaint_dist.data import shard_reader
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.packed_masks import unpack_masks
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shard_writer import ShardWriter, write_index
from inpaint_dist.data.shards import ShardError, ShardIndex, decode_packed_mask, encode_mask, mask_extension, shard_name
from inpaint_dist.data.streaming import find_shards
from inpaint_dist.data.tar import BLOCK, header, walk
from inpaint_dist.data.verification import CheckConfig, check_shards, verify
from inpaint_dist.errors import UserError

SIZE = 32


def blob(seed: int, size: int = SIZE) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    cv2.circle(mask, (5 + seed % 20, 12), 4 + seed % 5, 255, -1)
    return mask


def members(seed: int, masks: int = 1) -> dict[str, bytes]:
    photo = np.full((SIZE, SIZE, 3), seed * 7 % 256, np.uint8)
    photo[: seed % SIZE + 1] = 200
    sample = {"jpg": simplejpeg.encode_jpeg(photo, quality=90)}
    sample |= {mask_extension(k): encode_mask(blob(seed + k)) for k in range(masks)}
    facts = {"source": f"{seed}.jpg", "width": SIZE, "height": SIZE, "sha256": "0" * 64}
    return sample | {"json": json.dumps(facts).encode()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two train shards of four samples, one val shard of two; every other sample has two masks."""
    return make_folder(tmp_path / "shards")


def make_folder(path: Path) -> Path:
    path.mkdir()
    records = []
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            with ShardWriter(path / shard_name(split, number)) as writer:
                for i in range(4 if split == "train" else 2):
                    writer.add(f"{split}{number}-{i}", members(10 * number + i, masks=1 + i % 2))
            records.append(writer.record)
    write_index(path, size=SIZE, settings={"size": SIZE}, made_with={}, records=records)
    return path


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def edit_index(folder: Path, edit) -> None:
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in index.pop("shards"))
    head = json.dumps(index, separators=(",", ":"))
    (folder / "index.json").write_text(f'{head[:-1]},"shards":[\n{lines}\n]}}\n')


def problems(folder: Path, **options) -> list[str]:
    return [str(fault) for fault in verify(folder, **options)]


def test_every_member_comes_back_as_it_was_written(folder: Path):
    index = ShardIndex.load(folder, "train")
    assert (len(index), index.size, index.split) == (8, SIZE, "train")
    assert index.keys[5] == "train1-1"
    assert [index.mask_count(i) for i in range(8)] == [1, 2] * 4
    assert index.extension(0) == "jpg"
    with ShardReader(index) as reader:
        for i in range(8):
            for extension, data in members(10 * (i // 4) + i % 4, masks=1 + i % 2).items():
                assert reader.read(i, extension) == data
    with pytest.raises(ShardError, match=r"train-000000.tar: train0-0 has no mask-1.png"):
        index.member(0, "mask-1.png")


def test_an_index_laid_out_anew_by_another_tool_reads_the_same(folder: Path):
    before = ShardIndex.load(folder, "train")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
    after = ShardIndex.load(folder, "train")
    assert (after.keys, after.fingerprint) == (before.keys, before.fingerprint)
    assert after.member(5, "mask-1.png") == before.member(5, "mask-1.png")


def test_the_fingerprint_changes_with_the_bytes_and_only_of_its_split(folder: Path, tmp_path: Path):
    train, val = (ShardIndex.load(folder, split).fingerprint for split in ("train", "val"))
    again = make_folder(tmp_path / "again")
    assert ShardIndex.load(again, "train").fingerprint == train
    edit_index(again, lambda index: index["shards"][2].update(sha256="f" * 64))
    assert ShardIndex.load(again, "train").fingerprint == train
    assert ShardIndex.load(again, "val").fingerprint != val


def test_tarfile_reads_the_shards_as_plain_ustar(folder: Path):
    with tarfile.open(folder / "train-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.mode) for member in tar} == {(946684800, 0, 0o644)}
        assert tar.getnames()[:3] == ["train0-0.jpg", "train0-0.mask.png", "train0-0.json"]
        assert not tar.pax_headers
        photo = tar.extractfile("train0-1.jpg")
        assert photo is not None
        assert photo.read() == members(1)["jpg"]


def test_webdataset_reads_the_shards_by_its_documented_pipeline(folder: Path):
    if find_spec("webdataset") is None:
        pytest.skip("webdataset is not installed")
    script = f"""
import sys, webdataset
dataset = webdataset.WebDataset({f"{folder}/train-{{000000..000001}}.tar"!r}, shardshuffle=False).decode("rgb8")
for key, photo, mask, facts in dataset.to_tuple("__key__", "jpg", "mask.png", "json"):
    print(key, photo.shape, photo.dtype, mask.shape, (mask[..., 0] > 127).sum(), facts["width"])
"""
    command = [sys.executable, "-c", script]  # a process of its own: webdataset leaves files open
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 8
    assert lines[3] == f"train0-3 (32, 32, 3) uint8 (32, 32, 3) {np.count_nonzero(blob(3))} 32"


def test_a_shard_left_by_an_exception_does_not_exist(tmp_path: Path):
    def fail() -> None:
        with ShardWriter(tmp_path / "train-000000.tar") as writer:
            writer.add("a", {"jpg": b"1"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_keys_that_would_break_a_reader_cannot_be_written(tmp_path: Path):
    with ShardWriter(tmp_path / "train-000000.tar") as writer:
        writer.add("a", {"jpg": b"1"})
        for key in ("a", "a.b", "a b", "", "ä", "a/b"):
            with pytest.raises(ValueError, match="cannot be a key"):
                writer.add(key, {"jpg": b"1"})
    for name in ("a" * 99 + ".jpg", "../a.jpg", "a"):
        with pytest.raises(ValueError, match="cannot be a member"):
            header(name, 1)


@pytest.mark.parametrize("shape", [(32, 32), (7, 13), (1, 1), (5, 8), (256, 255)])
def test_a_mask_is_a_one_bit_png_that_anybody_reads(shape: tuple[int, int]):
    mask = ((np.indices(shape).sum(0) * 37 % 5) > 2).astype(np.uint8) * np.uint8(255)
    data = encode_mask(mask)
    assert struct.unpack_from(">IIBB", data, 16) == (shape[1], shape[0], 1, 0)
    assert (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) == mask).all()
    bits, width = decode_packed_mask(data, "mask")
    assert width == shape[1]
    assert (bits == np.packbits(mask != 0, axis=1)).all()
    assert not bits.flags.writeable  # a view of the inflated bytes: the fast path was taken


def test_any_other_png_is_unpacked_too(tmp_path: Path):
    mask = blob(3, 40)[:, :37].copy()
    expected = np.packbits(mask != 0, axis=1)
    Image.fromarray(mask).convert("1").save(tmp_path / "pil.png")
    filtered = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_STRATEGY, 1])[1].tobytes()
    for data in ((tmp_path / "pil.png").read_bytes(), cv2.imencode(".png", mask)[1].tobytes(), filtered):
        bits, width = decode_packed_mask(data, "mask")
        assert width == 37
        assert (bits == expected).all()


def test_a_mask_that_claims_less_than_it_inflates_to_is_refused():
    data = bytearray(encode_mask(blob(3)))
    bomb = zlib.compress(bytes(50_000_000), 9)
    body = b"IDAT" + bomb
    evil = bytes(data[:33]) + struct.pack(">I", len(bomb)) + body + struct.pack(">I", zlib.crc32(body)) + data[-12:]
    try:
        bits, _ = decode_packed_mask(evil, "mask")
    except UserError:
        return
    assert bits.nbytes == SIZE * SIZE // 8


def test_reading_is_safe_among_threads_even_when_files_must_be_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_reader, "_OPEN_FILES", 1)
    reader = ShardReader(ShardIndex.load(folder, "train"))
    expected = [reader.read(i, "jpg") for i in range(8)]
    wrong: list[object] = []

    def read_all(start: int) -> None:
        try:
            wrong.extend(i for k in range(400) if reader.read(i := (start + 5 * k) % 8, "jpg") != expected[i])
        except UserError as error:
            wrong.append(error)

    threads = [threading.Thread(target=read_all, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(reader._open) == 1
    reader.close()


def test_a_reader_goes_to_other_processes(folder: Path):
    with ShardReader(ShardIndex.load(folder, "train")) as reader:
        expected = reader.read(6, "jpg")
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert copy.read(6, "jpg") == expected
        child = os.fork()
        if not child:
            os._exit(0 if reader.read(6, "jpg") == expected and reader.read(1, "json") else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert reader.read(1, "json")


def test_a_changed_byte_is_an_error_that_names_shard_and_key(folder: Path):
    index = ShardIndex.load(folder, "train")
    change(folder / "train-000001.tar", index.member(5, "jpg").offset + 30, b"\x99")
    with ShardReader(index) as reader:
        reader.read(4, "jpg")
        with pytest.raises(ShardError, match=r"train-000001.tar: train1-1.jpg is damaged .*check_shards"):
            reader.read(5, "jpg")


def test_members_read_together_come_back_in_the_order_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: calls.append(at) or preadv(fd, into, at))
    with ShardReader(ShardIndex.load(folder, "train")) as reader:
        wanted = [(5, "jpg"), (5, "mask.png"), (0, "mask.png"), (0, "jpg"), (3, "jpg"), (3, "mask-1.png"), (5, "jpg")]
        together = [bytes(data) for data in reader.read_together(wanted)]
        assert together == [reader.read(*each) for each in wanted]
        assert len(calls) == 5  # photo and mask of 5, and of 3, at once; backwards it is two
        first = reader.read_together([(1, "jpg")])[0]
        again = reader.read_together([(2, "jpg")])[0]
        assert first.obj is again.obj  # memory that is used again
        assert reader.read_together([]) == []
        monkeypatch.setattr(shard_reader, "_KEPT", 10)
        large = reader.read_together(wanted)
        assert [bytes(data) for data in large] == together
        assert large[0].obj is not reader.read_together(wanted)[0].obj


def test_of_members_read_together_a_bad_one_is_named(folder: Path):
    index = ShardIndex.load(folder, "train")
    change(folder / "train-000001.tar", index.member(5, "mask.png").offset + 30, b"\x99")
    with ShardReader(index) as reader:
        assert [bytes(data) for data in reader.read_together([(5, "jpg")])] == [reader.read(5, "jpg")]
        with pytest.raises(ShardError, match=r"train-000001.tar: train1-1.mask.png is damaged"):
            reader.read_together([(4, "jpg"), (5, "jpg"), (5, "mask.png")])
        with pytest.raises(ShardError, match=r"train-000000.tar: train0-0 has no mask-1.png"):
            reader.read_together([(1, "mask-1.png"), (0, "mask-1.png")])
        with pytest.raises(ShardError, match=r"train0-0 has no webp"):
            reader.read_together([(0, "webp")])


@pytest.mark.parametrize("end", ["short", "error"])
def test_a_read_that_ends_early_is_tried_again_and_then_told(end: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def preadv(*_: object) -> int:
        if end == "error":
            raise OSError(5, "Input/output error")
        return 7

    with ShardReader(ShardIndex.load(folder, "train")) as reader:
        wanted = [(2, "jpg"), (2, "mask.png")]
        expected = [reader.read(*each) for each in wanted]
        monkeypatch.setattr(os, "preadv", preadv)
        assert [bytes(data) for data in reader.read_together(wanted)] == expected
        monkeypatch.setattr(os, "pread", lambda *_: b"")
        with pytest.raises(ShardError, match=r"train0-2.jpg is cut short"):
            reader.read_together(wanted)


@pytest.mark.parametrize("size", [32, 33, 8, 5])
def test_masks_unpack_together_as_they_do_alone_and_others_masks_do_not(size: int):
    rng = np.random.default_rng(size)
    masks = [(rng.random((size, size)) > share).astype(np.uint8) * 255 for share in (0.2, 0.8, 0.5)]
    files = [encode_mask(mask) for mask in masks]
    out = np.zeros((3, size, -(-size // 8)), np.uint8)
    assert unpack_masks(files, out)
    assert np.array_equal(out, np.stack([decode_packed_mask(file, "mask")[0] for file in files]))
    assert unpack_masks([], out[:0])
    spoilt = bytearray(files[1])
    spoilt[-20] ^= 1
    eight_bits = cv2.imencode(".png", masks[1])[1].tobytes()
    for bad in (bytes(spoilt), files[1][:40], b"", eight_bits, encode_mask(np.zeros((size, size + 8), np.uint8))):
        assert not unpack_masks([files[0], bad, files[2]], out)


def test_a_shard_of_another_size_is_not_opened(folder: Path):
    index = ShardIndex.load(folder, "train")
    os.truncate(folder / "train-000000.tar", index.shards[0].bytes - 1)
    (folder / "train-000001.tar").unlink()
    with ShardReader(index) as reader:
        with pytest.raises(ShardError, match=r"train-000000.tar has \d+ bytes, the index says \d+"):
            reader.read(0, "jpg")
        with pytest.raises(ShardError, match=r"train-000001.tar cannot be opened"):
            reader.read(4, "jpg")


def test_a_folder_that_is_none_of_shards_is_named_with_a_cure(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: no such folder of shards; .*make_shards.*--shards"):
        ShardIndex.load(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no index.json; make them with"):
        ShardIndex.load(tmp_path / "empty", "train")
    (folder / "index.json").unlink()
    (folder / ".unfinished").mkdir()
    with pytest.raises(UserError, match=r"has no index.json; its making did not finish"):
        ShardIndex.load(folder, "train")


@pytest.mark.parametrize(
    ("tars", "pattern"),
    [
        (["part-008.tar", "part-009.tar", "part-010.tar"], "part-{008..010}.tar"),
        (["a7-0.tar", "a7-1.tar"], "a7-{0..1}.tar"),
        (["train-000000.tar", "train-000001.tar", "val-000000.tar"], "train-{000000..000001}.tar"),
        (["photos.tar"], "photos.tar"),
        (["part-000.tar", "part-002.tar"], "*.tar"),
        (["part-9.tar", "part-10.tar"], "*.tar"),
        (["cats.tar", "dogs.tar"], "*.tar"),
        (["train-0.tar", "train-2.tar", "val-0.tar"], "train*.tar"),
    ],
)
def test_tars_of_others_are_told_with_the_pattern_that_reads_all_of_them(tars: list[str], pattern: str, tmp_path: Path):
    for name in tars:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "README.txt").write_text("not a shard")
    with pytest.raises(UserError) as refused:
        ShardIndex.load(tmp_path, "train")
    assert f'has no index.json; its tars can be read by --shards "{tmp_path}/{pattern}"' in str(refused.value)
    meant = [name for name in tars if not name.startswith("val")]
    assert sorted(find_shards(f"{tmp_path}/{pattern}")) == sorted(f"{tmp_path}/{name}" for name in meant)
    with pytest.raises(UserError, match="make them with tools/make_shards"):
        ShardIndex.load(tmp_path, "val")


def test_an_index_of_a_newer_format_asks_for_an_update(folder: Path):
    edit_index(folder, lambda index: index.update(format=2))
    with pytest.raises(UserError, match=r"format 2, and this version reads up to 1: update inpaint_dist"):
        ShardIndex.load(folder, "train")


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index["shards"].pop(0),
        lambda index: index["shards"][0].update(name="../../../etc/train-000000.tar"),
        lambda index: index["shards"][0].update(name="train-000000.tar/../../x.tar"),
        lambda index: index["shards"][0].update(samples=3),
        lambda index: index["shards"][0]["keys"].__setitem__(0, "a/../b"),
        lambda index: index["shards"][0]["keys"].__setitem__(0, "train1-1"),
        lambda index: index["shards"][0]["members"]["jpg"]["offset"].__setitem__(0, -512),
        lambda index: index["shards"][0]["members"]["jpg"]["size"].__setitem__(0, 1 << 40),
        lambda index: index["shards"][0]["members"]["jpg"]["crc32"].__setitem__(0, "x"),
        lambda index: index["shards"][0]["members"]["jpg"]["crc32"].pop(),
        lambda index: index["shards"][0].pop("sha256"),
        lambda index: index.pop("splits"),
        lambda index: index.update(size="large"),
        lambda index: index["shards"].__setitem__(0, {"name": "train-000000.tar"}),
    ],
)
def test_an_index_that_makes_no_sense_is_damaged_not_a_crash(folder: Path, damage):
    edit_index(folder, damage)
    with pytest.raises(ShardError, match=r"index.json is damaged"):
        ShardIndex.load(folder, "train")
    assert [fault.shard for fault in verify(folder)] == ["index.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "x"}', "\x00\x01"])
def test_an_index_that_is_no_json_is_damaged_not_a_crash(folder: Path, text: str):
    (folder / "index.json").write_text(text)
    with pytest.raises(ShardError, match=r"index.json is damaged"):
        ShardIndex.load(folder, "train")


def test_an_index_cut_short_is_found_at_any_byte(folder: Path):
    whole = (folder / "index.json").read_bytes()
    for end in range(0, len(whole) - 3, 37):
        (folder / "index.json").write_bytes(whole[:end])
        with pytest.raises(ShardError):
            ShardIndex.load(folder, "train")


def test_whole_shards_have_no_fault(folder: Path):
    assert verify(folder) == []
    assert verify(folder, fast=True) == []
    report = check_shards(CheckConfig(shards=str(folder)))
    assert report.lines() == ["10 samples in 3 shards read byte for byte: no fault"]


def test_each_flipped_byte_of_a_shard_is_found(folder: Path):
    path = folder / "val-000000.tar"
    whole = path.read_bytes()
    index = ShardIndex.load(folder, "val")
    photo = index.member(1, "jpg")
    for at in [
        *range(0, 512, 61),
        700,
        photo.offset - BLOCK + 130,
        photo.offset + 40,
        len(whole) - 700,
        len(whole) - 3,
    ]:
        change(path, at, bytes([whole[at] ^ 0x10]))
        found = verify(folder)
        assert found, at
        assert {fault.shard for fault in found} == {"val-000000.tar"}
        change(path, at, whole[at : at + 1])
    change(path, photo.offset + 40, b"\0\1\2")
    assert problems(folder) == ["val-000000.tar: val0-1: val0-1.jpg has changed: its checksum does not fit"]


def test_a_shard_cut_anywhere_is_found_even_in_haste(folder: Path):
    path = folder / "val-000000.tar"
    whole = path.read_bytes()
    index = ShardIndex.load(folder, "val")
    second = index.member(1, "jpg").offset - BLOCK
    for end in (0, 100, 512, second - 1, second, second + 200, second + BLOCK, len(whole) - 1024, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert verify(folder, fast=True), end
    path.write_bytes(whole[:second])
    lost = [fault for fault in verify(folder) if fault.key == "val0-1"]
    assert {fault.problem.split()[0] for fault in lost} >= {"val0-1.jpg", "val0-1.mask.png", "val0-1.json"}
    assert not [fault for fault in verify(folder) if fault.key == "val0-0"]


def test_missing_foreign_and_swapped_shards_are_found(folder: Path):
    shutil.copy(folder / "train-000001.tar", folder / "train-000007.tar")
    (folder / "train-000000.tar").unlink()
    shutil.copy(folder / "train-000001.tar", folder / "val-000000.tar")
    found = problems(folder, fast=True)
    assert "train-000007.tar: the index does not list it" in found
    assert "train-000000.tar: is missing, with 4 samples" in found
    assert any(line.startswith("val-000000.tar: val0-1: the tar has no val0-1.jpg") for line in found)
    assert any(line.startswith("val-000000.tar: train1-0: the index has no train1-0.jpg") for line in found)


def test_contents_that_do_not_decode_are_found_though_every_checksum_fits(tmp_path: Path):
    path = tmp_path / "shards"
    path.mkdir()
    good = members(1)
    with ShardWriter(path / "train-000000.tar") as writer:
        writer.add("cut", good | {"jpg": good["jpg"][:-40]})
        writer.add("small", good | {"jpg": simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))})
        writer.add("text", good | {"mask.png": b"no mask"})
        writer.add("empty", good | {"mask.png": encode_mask(np.zeros((SIZE, SIZE), np.uint8))})
        writer.add("json", good | {"json": b"[1"})
        writer.add("facts", good | {"json": b"{}"})
        writer.add("bare", {"jpg": good["jpg"], "json": good["json"]})
    write_index(path, size=SIZE, settings={}, made_with={}, records=[writer.record])
    found = {fault.key: fault.problem for fault in verify(path)}
    assert "does not decode (a damaged JPEG" in found["cut"]
    assert "is 8x8, not 32x32" in found["small"]
    assert "does not decode" in found["text"]
    assert "has no hole" in found["empty"]
    assert "is no JSON" in found["json"]
    assert "lacks" in found["facts"]
    assert "bare.mask.png is not in the index" in found["bare"]
    assert verify(path, fast=True) == []


def test_a_sample_twice_in_a_tar_is_found(folder: Path):
    path = folder / "val-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1024] + whole)
    assert "val-000000.tar: val0-0: val0-0.jpg is there 2 times" in problems(folder, fast=True)


@pytest.mark.parametrize("size", [b"-0000000001\0", b"77777777777\0", b"\x80" + bytes(10) + b"\xff", b"            "])
def test_hostile_sizes_end_the_walk_at_once(tmp_path: Path, size: bytes):
    block = bytearray(header("a.jpg", 10))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path = tmp_path / "evil.tar"
    path.write_bytes(bytes(block) + bytes(2048))
    with path.open("rb") as file, pytest.raises(ValueError, match=r"byte 0: "):
        list(walk(file))


@pytest.mark.parametrize("name", [b"../../x.jpg", b"/etc/x.jpg", b"a", b"", b"a b.jpg", b"\xff.jpg"])
def test_hostile_names_end_the_walk_at_once(tmp_path: Path, name: bytes):
    block = bytearray(header("a.jpg", 0))
    block[:100] = name.ljust(100, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path = tmp_path / "evil.tar"
    path.write_bytes(bytes(block) + bytes(1024))
    with path.open("rb") as file, pytest.raises(ValueError, match=r"byte 0: .* is not one of a shard"):
        list(walk(file))


def test_a_link_in_a_tar_is_no_member(tmp_path: Path):
    with tarfile.open(tmp_path / "evil.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with (tmp_path / "evil.tar").open("rb") as file, pytest.raises(ValueError, match="no regular file"):
        list(walk(file))
