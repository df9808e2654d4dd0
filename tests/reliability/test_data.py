"""Bad data of every kind: refused at the start by file and reason, or counted by shard and key; never silent."""

import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from inpaint_dist.data.bad_samples import TooManyBadSamples
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.opencv import MAX_PIXELS
from inpaint_dist.data.shard_writer import ShardWriter, write_index
from inpaint_dist.data.shards import ShardIndex, encode_mask, shard_name
from inpaint_dist.data.sources import Place, open_sources
from inpaint_dist.errors import UserError

SIZE, VICTIM = 16, "victim"
ROOT = Path(__file__).parents[2]
MEMBERS = Mapping[str, bytes | None]


def photo(number: int = 9, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def hole(size: int = SIZE, value: int = 255) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[3:9, 4:12] = value
    return mask


def saved(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(pixels, quality=90)


def png_that_claims(width: int, height: int, *, grey: bool = False) -> bytes:
    """A small PNG whose header claims so many pixels."""
    kinds = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0))
    chunks = (kinds, (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    made = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(jpeg(photo()))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


class Boobytrap:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (os.mkdir, ("/tmp/inpaint_dist-was-here",))


# -------------------------------------------------------------------- shards to damage


def own(folder: Path, victim: MEMBERS | None = None) -> Path:
    """Two shards of three samples; the second sample's members replaced by `victim`'s, or left out where None."""
    folder.mkdir()
    records = []
    for shard in range(2):
        with ShardWriter(folder / shard_name("train", shard)) as writer:
            for place in range(3):
                number = 3 * shard + place
                members = {"jpg": jpeg(photo(number)), "mask.png": encode_mask(hole())}
                if number == 1:
                    members = {k: v for k, v in {**members, **(victim or {})}.items() if v is not None}
                writer.add(VICTIM if number == 1 else f"good{number}", members)
        records.append(writer.record)
    write_index(folder, size=SIZE, settings={}, made_with={}, records=records)
    return folder


def foreign(folder: Path, victim: Mapping[str, bytes] | None = None, more: Mapping[str, bytes] | None = None) -> str:
    """A plain tar of three samples as anybody makes one; the second's members replaced, more members after them."""
    folder.mkdir()
    members = {}
    for number in range(3):
        key = VICTIM if number == 1 else f"good{number}"
        own_members = {"png": saved(photo(number)), "mask.png": saved(hole())}
        own_members = dict(victim) if number == 1 and victim is not None else own_members
        members |= {f"{key}.{name}": data for name, data in own_members.items()}
    with tarfile.open(folder / "theirs.tar", "w") as tar:
        for name, data in (members | dict(more or {})).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(folder / "theirs.tar")


def edited_index(folder: Path, edit: Callable[[dict], object]) -> Path:
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def flip(path: Path, at: int, byte: int = 0xFF) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= byte
    path.write_bytes(data)
    return path.parent


def place_of(folder: Path, member: str) -> int:
    """Where a member of the victim begins."""
    index = json.loads((folder / "index.json").read_text())
    return index["shards"][0]["members"][member]["offset"][1]


def changed(folder: Path, change: Callable[[Path], object]) -> Path:
    """Do something to the first shard."""
    change(folder / "train-000000.tar")
    return folder


def swapped_for_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swapped_for_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def swapped_for_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


class Case(NamedTuple):
    """One kind of bad data."""

    verdict: Literal["start", "counted", "taken"]
    """Refused before the first step; counted as a bad sample; or read, by a rule of the README."""
    make: Callable[[Path], Path | str]
    says: str = ""
    """What the reason has in it."""
    lost: int = 1
    """Samples that cannot be read."""


SHARD = lambda change: lambda path: changed(own(path), change)  # noqa: E731
MEMBER = lambda **victim: lambda path: own(path, {k.replace("_", "."): v for k, v in victim.items()})  # noqa: E731
INDEX = lambda edit: lambda path: edited_index(own(path), edit)  # noqa: E731
THEIRS = lambda **victim: lambda path: foreign(path, {k.replace("_", "."): v for k, v in victim.items()})  # noqa: E731
MASK = saved(hole())

CASES = {
    # our own shards: a tar that is not what the index says
    "a shard cut short": Case("counted", SHARD(lambda p: os.truncate(p, 2000)), "has 2000 bytes, the index says", 3),
    "a shard cut to nothing": Case("counted", SHARD(lambda p: os.truncate(p, 0)), "has 0 bytes", 3),
    "a shard grown longer": Case("counted", SHARD(lambda p: os.truncate(p, 99_999)), "has 99999 bytes", 3),
    "a missing shard": Case("counted", SHARD(lambda p: p.unlink()), "cannot be opened", 3),
    "a pipe in a shard's place": Case("counted", SHARD(swapped_for_a_pipe), "has 0 bytes", 3),
    "a folder in a shard's place": Case("counted", SHARD(swapped_for_a_folder), "bytes, the index says", 3),
    "a link to nowhere": Case("counted", SHARD(swapped_for_a_link), "cannot be opened", 3),
    "zeros in a shard's place": Case(
        "counted", SHARD(lambda p: p.write_bytes(bytes(p.stat().st_size))), "checksum does not fit", 3
    ),
    "a flipped byte of a photo": Case(
        "counted",
        lambda path: flip(own(path) / "train-000000.tar", place_of(path, "jpg") + 90),
        "victim.jpg is damaged",
    ),
    "a flipped byte of a mask": Case(
        "counted", lambda path: flip(own(path) / "train-000000.tar", place_of(path, "mask.png") + 40), "victim.mask.png"
    ),
    # our own shards: bytes that are what was written, and are no sample
    "no photo": Case("counted", MEMBER(jpg=None), "victim has no jpg"),
    "no mask": Case("counted", MEMBER(mask_png=None), "victim has no mask.png"),
    "a photo of no bytes": Case("counted", MEMBER(jpg=b""), "empty"),
    "a photo that is text": Case("counted", MEMBER(jpg=b"<html>" * 99), "not a picture"),
    "a photo cut short": Case("counted", MEMBER(jpg=jpeg(photo(3))[:-60]), "damaged JPEG"),
    "a photo of another size": Case("counted", MEMBER(jpg=jpeg(photo(3, 17))), "is 17x17, the index says 16x16"),
    "a smaller photo": Case("counted", MEMBER(jpg=jpeg(photo(3, 8))), "is 8x8"),
    "a photo of no pixels": Case("counted", MEMBER(jpg=jpeg_that_claims(0, 0)), "victim"),
    "a JPEG bomb": Case("counted", MEMBER(jpg=jpeg_that_claims(60_000, 60_000)), "more than the limit"),
    "a JPEG below the limit": Case("counted", MEMBER(jpg=jpeg_that_claims(11_000, 11_000)), "11000x11000"),
    "a PNG bomb for a photo": Case("counted", MEMBER(jpg=png_that_claims(50_000, 50_000)), "more than the limit"),
    "a PNG bomb for a mask": Case("counted", MEMBER(mask_png=png_that_claims(1 << 20, 1 << 20, grey=True)), "limit"),
    "a mask that is text": Case("counted", MEMBER(mask_png=b"no mask"), "not a picture"),
    "a mask cut short": Case("counted", MEMBER(mask_png=saved(hole(64))[:60]), "victim"),
    "a mask of another size": Case("counted", MEMBER(mask_png=encode_mask(hole(17))), "the mask is not 16x16"),
    "a mask without a hole": Case("counted", MEMBER(mask_png=encode_mask(hole() * 0)), "victim: the mask has no hole"),
    "a mask that is all hole": Case("counted", MEMBER(mask_png=encode_mask(hole() * 0 + 255)), "the mask is all hole"),
    "a soft mask below the threshold": Case("counted", MEMBER(mask_png=saved(hole(value=127))), "the mask has no hole"),
    "a mask of 0 and 1": Case("counted", MEMBER(mask_png=saved(hole(value=1))), "holds 0 and 1"),
    # our own shards: an index that is none, or another's
    "no index": Case("start", lambda path: (own(path) / "index.json").unlink() or path, "has no index.json"),
    "an empty index": Case("start", lambda path: os.truncate(own(path) / "index.json", 0) or path, "damaged"),
    "an index cut short": Case("start", lambda path: os.truncate(own(path) / "index.json", 200) or path, "is damaged"),
    "an index of a newer format": Case("start", INDEX(lambda i: i.update(format=9)), "update inpaint_dist"),
    "an index with a key twice": Case("start", INDEX(lambda i: i["shards"][0]["keys"].__setitem__(0, VICTIM)), VICTIM),
    "an index that leads out of the folder": Case(
        "start", INDEX(lambda i: i["shards"][0].update(name="train-/../../x.tar")), "makes no sense"
    ),
    "an index with a place outside its shard": Case(
        "start", INDEX(lambda i: i["shards"][0]["members"]["jpg"]["offset"].__setitem__(0, 1 << 40)), "outside the file"
    ),
    "an index with a member of terabytes": Case(
        "start",
        INDEX(
            lambda i: (
                i["shards"][0].update(bytes=1 << 50),
                i["shards"][0]["members"]["jpg"]["size"].__setitem__(0, 1 << 40),
            )
        ),
        "a member has",
    ),
    "an index of pictures of a billion pixels a side": Case("start", INDEX(lambda i: i.update(size=10**9)), "pixels a"),
    "an index of pictures of no pixels": Case("start", INDEX(lambda i: i.update(size=0)), "0 pixels a side"),
    "an index without samples": Case(
        "start", INDEX(lambda i: (i["shards"].clear(), i["splits"]["train"].update(samples=0))), "no training samples"
    ),
    "another set's index": Case(
        "counted",
        lambda path: (
            shutil.copy(own(path.with_name("other"), {"jpg": jpeg(photo(8, 64))}) / "index.json", own(path)) and path
        ),
        "bytes, the index says|checksum does not fit",
        3,
    ),
    "a pipe in the index's place": Case(
        "start", lambda path: swapped_for_a_pipe(own(path) / "index.json") or path, "is no file"
    ),
    "a file in the folder's place": Case("start", lambda path: path.write_text("x") and path, "no such folder"),
    # tars that others made
    "their tar, cut short": Case(
        "start", lambda p: os.truncate(foreign(p), 3000) or str(p / "*.tar"), "theirs.tar: byte"
    ),
    "their tar, a header's bit flipped": Case(
        "start",
        lambda p: flip(Path(foreign(p)), 700 + 2048, 1) and str(p / "*.tar"),
        r"the header's checksum",
    ),
    "their tar, of no bytes": Case(
        "start", lambda p: os.truncate(foreign(p), 0) or str(p / "*.tar"), "theirs.tar: byte 0"
    ),
    "their tar, a page of a web server": Case(
        "start", lambda p: Path(foreign(p)).write_text("<html>" * 999) and str(p / "*.tar"), "theirs.tar: byte 0"
    ),
    "their pipe": Case(
        "start", lambda p: swapped_for_a_pipe(Path(foreign(p))) or str(p / "theirs.tar"), "no such file"
    ),
    "their sample, without a photo": Case("start", THEIRS(txt=b"x", mask_png=MASK), "victim has no photo .*txt"),
    "their sample, without a mask": Case("start", THEIRS(png=saved(photo())), "victim has no mask.png"),
    "their photo, cut short": Case("counted", THEIRS(jpg=jpeg(photo(3, 64))[:-300], mask_png=MASK), "damaged JPEG"),
    "their photo, text": Case("counted", THEIRS(jpg=b"text", mask_png=MASK), "not a picture"),
    "their photo, a bomb": Case("counted", THEIRS(png=png_that_claims(50_000, 50_000), mask_png=MASK), "the limit"),
    "their mask, all black": Case("counted", THEIRS(png=saved(photo()), mask_png=saved(hole() * 0)), "has no hole"),
    "their mask, of 0 and 1": Case("counted", THEIRS(png=saved(photo()), mask_png=saved(hole(value=1))), "0 and 1"),
    # what is read, and how
    "their photo in CMYK": Case("taken", THEIRS(jpg=saved(photo(), "JPEG", "CMYK"), mask_png=MASK)),
    "their photo in grey": Case("taken", THEIRS(jpg=saved(photo(), "JPEG", "L"), mask_png=MASK)),
    "their photo of 16 bits": Case("taken", THEIRS(png=saved(photo()[..., 0].astype(np.uint16) * 257), mask_png=MASK)),
    "their photo with alpha": Case("taken", THEIRS(png=saved(photo(), "PNG", "RGBA"), mask_png=MASK)),
    "their photo of one pixel": Case("taken", THEIRS(png=saved(photo(1, 1)), mask_png=MASK)),
    "their mask in colour": Case("taken", THEIRS(png=saved(photo()), mask_png=saved(hole(), "PNG", "RGB"))),
    "their members of other kinds": Case(
        "taken", lambda p: foreign(p, more={f"{VICTIM}.pyd": pickle.dumps(Boobytrap()), f"{VICTIM}.pth": b"\x80"})
    ),
    "their names that lead out of the folder": Case(
        "taken", lambda p: foreign(p, more={"../../x.png": saved(photo()), "../../x.mask.png": MASK})
    ),
    "their names in other scripts": Case(
        "taken", lambda p: foreign(p, more={"größe/写真 1\n.png": saved(photo()), "größe/写真 1\n.mask.png": MASK})
    ),
}
assert sum(case.verdict != "taken" for case in CASES.values()) >= 50


def open_loader(shards: Path | str, most: int) -> Loader:
    size = SIZE if isinstance(shards, str) else None
    config = DataConfig(shards=str(shards), batch_size=3, max_bad_samples=most, size=size, workers=1)
    sources = open_sources(config, Place(0, 1, torch.device("cpu")), seed=0, epochs=2, max_steps=None, parts=1)
    assert isinstance(sources.loader, Loader)
    return sources.loader


@pytest.mark.timeout(60, method="thread")  # a thread that waits for a pipe lets no exception through
@pytest.mark.parametrize("name", CASES)
def test_bad_data_is_refused_or_counted_by_name(name: str, tmp_path: Path):
    case = CASES[name]
    shards = case.make(tmp_path / "shards")
    file = Path(shards).name if isinstance(shards, str) and "*" not in shards else "shards"
    if case.verdict == "start":
        with pytest.raises(UserError, match=case.says) as caught:
            open_loader(shards, 20)
        assert file in str(caught.value)
        return
    loader = open_loader(shards, 20)
    keys = [key for batch in loader.batches(0, 6) for key in batch.keys]
    if case.verdict == "taken":
        assert not loader.bad.new and set(keys) == set(loader.index.keys)
        assert all(key.isprintable() for key in keys)
        assert not Path("/tmp/inpaint_dist-was-here").exists()
        assert {path.name for path in tmp_path.iterdir()} == {"shards"}
        return
    assert len(keys) == 18
    assert len(loader.bad.new) == case.lost and VICTIM in [bad.key for bad in loader.bad.new]
    for bad in loader.bad.new:
        assert bad.shard in ("train-000000.tar", "theirs.tar")
        assert bad.shard in bad.reason and len(bad.reason) < 400
    with pytest.raises(TooManyBadSamples, match=case.says) as caught:
        list(open_loader(shards, 0).batches(0, 6))
    assert loader.bad.new[0].shard in str(caught.value)


def test_the_limit_of_pixels_holds_where_nobody_says_otherwise():
    assert MAX_PIXELS == 1 << 27


# -------------------------------------------------------------------- several processes


def run_on_two_ranks(shards: Path, out: Path, *flags: str) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = ["--generator.channels", "4", "8", "--discriminator.channels", "4", "8", "--report-to", "none"]
    command = [sys.executable, "-m", "inpaint_dist.train", "unet", "--cpu", "--threads", "1", "--shards", str(shards)]
    command += ["--output-dir", str(out), "--batch-size", "2", *small, *flags]
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    running = [
        subprocess.Popen(command, env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **pipes)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, *both)
        for process, both in zip(running, said, strict=True)
    ]


def test_ranks_that_each_meet_their_part_stop_together_with_the_whole_list(shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    index = ShardIndex.load(copy, "train")
    bad = []
    for rank in range(2):  # one each, after the report of the first step
        config, cpu = DataConfig(), torch.device("cpu")
        loader = Loader(config, index, seed=0, rank=rank, world=2, per_process=2, device=cpu)
        bad.append(loader.draws(1)[0].index)
        member = index.member(bad[-1], "jpg")
        flip(copy / index.shards[member.shard].name, member.offset + 100)
    flags = ("--max-steps", "9", "--report-every", "9", "--checkpoint-every", "3", "--eval-every", "99")
    ranks = run_on_two_ranks(copy, tmp_path / "run", *flags, "--max-bad-samples", "1")
    assert [rank.returncode for rank in ranks] == [1, 1]
    for rank in ranks:  # the second speaks too, for here no launcher ends it when the first has ended
        assert "--max-bad-samples 1: 2 training samples cannot be read" in rank.stderr
        assert "Traceback" not in rank.stderr and all(index.keys[sample] in rank.stderr for sample in bad)
    assert not (tmp_path / "run/checkpoints").exists()
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count(" bad sample: ") == 2
    assert all(f"{index.keys[sample]}.jpg is damaged" in log for sample in bad)
