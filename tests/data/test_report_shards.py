"""The page about shards: right numbers, nothing from outside, and what is wrong with a set is on it."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.packed_masks import encode_mask
from inpaint_dist.data.shard_page import ReportConfig, report_shards
from inpaint_dist.data.shard_statistics import find_copies, look_at, read_rejected
from inpaint_dist.data.shard_writer import ShardWriter, write_index
from inpaint_dist.data.sharding import ShardingConfig, make_shards
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UsageError, UserError

SIZE = 32


def make(root: Path, *, train: int = 6, val: int = 2, rows: int = 8, same: tuple[str, str] | None = None) -> Path:
    """Photos of one grey each, brighter from one to the next, whose masks' upper `rows` rows are hole."""
    for split, count, first in (("train", train, 0), ("val", val, train)):
        (root / split).mkdir(parents=True)
        for number in range(count):
            photo = np.full((48, 64, 3), 20 * (first + number) + 10, np.uint8)
            photo[: 2 * (first + number) + 4, :9] = 255  # else their JPEGs are of few kinds
            (root / split / f"{split}{number}.jpg").write_bytes(simplejpeg.encode_jpeg(photo))
    if same:
        (root / same[1]).write_bytes((root / same[0]).read_bytes())
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:rows] = 255
    (root / "masks").mkdir()
    cv2.imwrite(str(root / "masks/m.png"), mask)
    (root / "train/<script>alert(1)<.jpg").write_bytes(b"no photo")
    given = {"val": (str(root / "val"),)} if val else {"val_fraction": 0.0}
    make_shards(
        ShardingConfig(
            photos=(str(root / "train"),),
            masks=(str(root / "masks"),),
            out=root / "out",
            size=SIZE,
            workers=1,
            allow_large_holes=rows > 16,
            **given,
        )
    )
    return root / "out"


def write(
    folder: Path,
    *,
    photos: int = 1,
    side: int = SIZE,
    masks: tuple[int, ...] = (8,),
    mask_side: int = SIZE,
    about: str | None = None,
    val_rows: int = 0,
    settings: dict[str, object] | None = None,
) -> Path:
    """Shards by hand, as others may: a mask for each number of rows that are hole; with `val_rows` a val of one."""
    records = []
    folder.mkdir()
    for split, count, holes in (("train", photos, masks), ("val", int(val_rows > 0), (val_rows,))):
        if not count:
            continue
        with ShardWriter(folder / f"{split}-000000.tar") as writer:
            for number in range(count):
                photo = np.full((side, side, 3), 40 * number + 20, np.uint8)
                photo[: 8 * number : 2, :9] = 255  # else their JPEGs are of few kinds
                members = {"jpg": simplejpeg.encode_jpeg(photo)}
                for k, rows in enumerate(holes):
                    mask = np.zeros((mask_side, mask_side), np.uint8)
                    mask[:rows] = 255
                    members[f"mask-{k}.png" if k else "mask.png"] = encode_mask(mask)
                if about is not None:
                    members["json"] = about.encode()
                writer.add(f"{split}{number}", members)
        records.append(writer.record)
    write_index(folder, size=SIZE, settings=settings or {}, made_with={}, records=records)
    return folder


def page_of(shards: Path, **options: object) -> str:
    out = shards.parent / "page.html"
    report_shards(ReportConfig(shards=shards, out=out, **options))  # type: ignore[arg-type]
    return out.read_text(encoding="utf-8")


def words(page: str) -> str:
    """What a reader sees, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.S)))


def test_the_numbers_are_those_of_the_set(tmp_path: Path):
    shards = make(tmp_path)
    index = ShardIndex.load(shards, "train")
    seen: list[int] = []
    found = look_at(index, 100, seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert (len(found.looked), found.damaged, found.masks_of_each.tolist()) == (6, (), [1] * 6)
    assert found.source_sides.tolist() == [48] * 6
    assert found.ratios.tolist() == [8 / SIZE] * 6
    assert found.at_edge == 1.0
    assert {(sample.width, sample.height) for sample in found.looked} == {(64, 48)}
    bright = {index.keys[sample.number]: sample.brightness for sample in found.looked}
    assert bright["train5"] > bright["train0"] > 10 / 255
    assert found.bytes == sum(path.stat().st_size for path in shards.glob("train-*.tar"))
    assert [sample.number for sample in look_at(index, 3, seen.append).looked] == [0, 2, 4]


def test_the_page_tells_them_and_needs_nothing_from_outside(tmp_path: Path):
    page = page_of(make(tmp_path))
    text = words(page)
    assert "samples 6 2" in text
    assert "train 6 25.0% 0.0% 100.0% 0.0%" in text
    assert "48 to 48 pixels, the median 48; 0 of 8 were smaller than 32" in text
    assert "No two photos are equal" in text
    assert "masks_per_photo 1" in text
    assert "--near-duplicates" in text
    assert "--invert-masks" not in text
    assert f"fingerprint of val {ShardIndex.load(tmp_path / 'out', 'val').fingerprint}" in text
    assert 'alt="Sample of val: val1"' in page
    pictures = 2 + 8  # the sources are of one size, which needs no histogram
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/(?:png|jpeg);base64,', page)) == pictures
    assert not re.search(r"https?://|<script|<link|url\(", page)
    assert len(re.findall(r"src=", page)) == pictures
    few = page_of(tmp_path / "out", sample=3, count=2)
    assert "are those of 3 of 6 train samples and 2 of 2 val samples" in words(few)
    assert few.count('alt="Sample of') == 4


def test_files_and_masks_are_counted_over_all_samples(tmp_path: Path):
    shards = write(tmp_path / "set", photos=3, masks=(8, 4, 2))
    sizes = {name: column.size for name, column in ShardIndex.load(shards, "train").columns.items()}
    photos = sizes.pop("jpg")
    masks = np.concatenate([*sizes.values()])
    assert len(set(photos.tolist())) == 3
    text = words(page_of(shards, sample=1))
    for what, of in (("photo", photos), ("mask", masks)):
        assert f"bytes of a {what}, mean {of.mean():,.0f} of the smallest {what} {of.min():,} " in text
        assert f"of the largest {what} {of.max():,} " in text
    assert "masks 9 masks of a photo 3 " in text
    with ShardWriter(tmp_path / "train-000000.tar") as writer:
        for number, masks in enumerate(({}, {"mask.png": b"?"}, {"mask.png": b"?", "mask-1.png": b"?"})):
            writer.add(f"a{number}", {"jpg": b"x" * number, **masks})
    write_index(tmp_path, size=SIZE, settings={}, made_with={}, records=[writer.record])
    text = words(page_of(tmp_path))
    assert "masks 3 masks of a photo 0 to 2 " in text
    assert "bytes of a mask, mean 1 of the smallest mask 1 " in text


def test_sources_of_several_sizes_are_drawn_and_unknown_ones_are_not_invented(tmp_path: Path):
    shards = make(tmp_path)
    drawn = 'alt="Resolution of the sources of train and val"'
    assert drawn not in page_of(shards)
    root = tmp_path / "more"
    root.mkdir()
    for number, side in enumerate((40, 80, 160)):
        (root / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(np.full((side, side, 3), 9 * number, np.uint8)))
    given = {"photos": (str(root),), "masks": (str(tmp_path / "masks"),), "val_fraction": 0.0, "workers": 1}
    make_shards(ShardingConfig(out=root / "out", size=64, **given))  # type: ignore[arg-type]
    page = page_of(root / "out")
    assert drawn in page
    assert "40 to 160 pixels, the median 80; 1 of 3 were smaller than 64" in words(page)
    bytes_drawn = 'alt="Bytes of the photos of train and val"'
    assert bytes_drawn not in page
    page = page_of(write(tmp_path / "unsaid", photos=2))
    assert "do not say how large the photos were" in words(page)
    assert bytes_drawn in page
    assert drawn not in page


@pytest.mark.parametrize("side", ["Infinity", "1e400", "NaN", "-5", "0", "9" * 30, "null", "[1]", '"x"'])
def test_a_source_of_an_impossible_size_is_unknown(side: str, tmp_path: Path):
    about = f'{{"source": "a", "width": {side}, "height": 40, "sha256": ""}}'
    index = ShardIndex.load(write(tmp_path / "set", about=about), "train")
    found = look_at(index, 1, lambda _: None)
    assert (len(found.looked), found.source_sides.tolist()) == (1, [])


def test_what_was_left_out_is_listed_and_cannot_become_part_of_the_page(tmp_path: Path):
    shards = make(tmp_path)
    with (shards / "rejected.jsonl").open("a") as file:
        for number in range(7):
            file.write(json.dumps({"photo": f"p{number}", "reason": f"is {number} pixels wide"}) + "\n")
        for number in range(3):
            file.write(json.dumps({"photo": f"c{number}", "reason": f"the same bytes as {'abc'[number]}.jpg"}) + "\n")
        file.write("\n")
    first, third, second = read_rejected(shards / "rejected.jsonl") or ()
    assert (third.times, third.reason) == (3, "the same bytes as a.jpg")
    assert (first.kind, first.times, first.reason) == ("photo", 7, "is 0 pixels wide")
    assert first.names == ("p0", "p1", "p2", "p3", "p4")
    assert second.names == ("<script>alert(1)<.jpg",)
    page = page_of(shards)
    assert "&lt;script&gt;alert(1)&lt;.jpg" in page
    for nonsense in (b"{}\n", b"[1]\n", b"\x89PNG\xff\n", b'{"photo": "p"}'):
        (shards / "rejected.jsonl").write_bytes(nonsense)
        with pytest.raises(UserError, match=r"rejected.jsonl: line 1 is no record"):
            page_of(shards)
    with (shards / "rejected.jsonl").open("w") as file:
        for number in range(30):
            letters = chr(ord("a") + number % 26) * (1 + number // 26)
            file.write(json.dumps({"file": "x" * 9999, "reason": f"\ud800 {letters}"}) + "\n")
    page = page_of(shards)
    assert "and 10 more, for other reasons" in words(page)
    assert "x" * 501 not in page
    (shards / "rejected.jsonl").unlink()
    assert "There is no rejected.jsonl" in words(page_of(shards))
    (shards / "rejected.jsonl").mkdir()
    with pytest.raises(UserError, match=r"rejected.jsonl cannot be read"):
        page_of(shards)


def test_copies_within_and_across_the_splits_are_named(tmp_path: Path):
    shards = make(tmp_path, same=("train/train2.jpg", "val/val0.jpg"))
    indexes = [ShardIndex.load(shards, split) for split in ("train", "val")]
    (copies,), unread = find_copies(indexes)
    assert (copies.names, copies.leak, unread) == (("train train2", "val val0"), True, 0)
    text = words(page_of(shards))
    assert "1 photos are in train and in val, byte for byte" in text
    assert "train train2 = val val0" in text
    with (shards / "train-000000.tar").open("r+b") as file:
        file.seek(indexes[0].member(indexes[0].keys.index("train2"), "jpg").offset + 40)
        file.write(b"\x99\x98")
    text = words(page_of(shards))
    assert "1 photos have the size and checksum of another one, but cannot be read" in text
    assert "No two photos are equal" not in text


def test_one_checksum_is_not_enough_to_be_a_copy(tmp_path: Path):
    index = ShardIndex.load(make(tmp_path), "train")
    column = index.columns["jpg"]
    column.size[:], column.crc32[:] = column.size[0], column.crc32[0]
    assert find_copies([index]) == ([], 5)  # what does not fit its checksum cannot be read


def test_inverted_masks_are_suspected(tmp_path: Path):
    assert "of train and of val is hole" in words(page_of(make(tmp_path, rows=24)))


def test_inverted_masks_of_val_alone_are_suspected(tmp_path: Path):
    text = words(page_of(write(tmp_path / "set", photos=5, val_rows=24)))
    assert "More than half of the pictures of val is hole" in text
    assert "make the shards again with --invert-masks" in text
    shards = write(tmp_path / "inverted", masks=(24,), settings={"invert_masks": True})
    assert "make the shards again without --invert-masks" in words(page_of(shards))


def test_what_is_not_of_the_size_of_the_shards_is_damaged(tmp_path: Path):
    assert "train0.jpg: is 48x48, not 32x32" in words(page_of(write(tmp_path / "photo", side=48)))
    assert "train0.mask.png: is 16x16, not 32x32" in words(page_of(write(tmp_path / "mask", mask_side=16)))


def test_a_damaged_sample_is_named_and_the_rest_is_shown(tmp_path: Path):
    shards = make(tmp_path)
    index = ShardIndex.load(shards, "train")
    with (shards / "train-000000.tar").open("r+b") as file:
        file.seek(index.member(3, "jpg").offset + 40)
        file.write(b"\x99\x98")
    lines = report_shards(ReportConfig(shards=shards, out=tmp_path / "page.html", near_duplicates=True))
    assert lines[0].startswith("1 of the samples that were read are damaged")
    text = words((tmp_path / "page.html").read_text())
    assert f"{index.keys[3]}.jpg is damaged" in text
    assert "is not known: samples are damaged" in text
    report_shards(ReportConfig(shards=shards, out=tmp_path / "page.html", near_duplicates=True, sample=1))
    assert re.search(r"is not known: .*is damaged", words((tmp_path / "page.html").read_text()))
    (shards / "train-000000.tar").unlink()
    text = words(page_of(shards))
    assert "but the index lists it (6 times)" in text
    assert "6 of the samples that were read are damaged" in text


@pytest.mark.skipif(find_spec("imagehash") is None, reason="imagehash is not installed (the extra `duplicates`)")
def test_photos_of_val_that_look_like_one_of_train_are_listed(tmp_path: Path):
    shards = make(tmp_path, same=("train/train2.jpg", "val/val0.jpg"))
    text = words(page_of(shards, near_duplicates=True))
    assert re.search(r"[12] photos of val look like one of train", text)
    assert re.search(r"val val0 looks like train train\d \(0 of 64 bits differ\)", text)


def test_a_single_photo_without_val_has_a_page(tmp_path: Path):
    text = words(page_of(make(tmp_path, train=1, val=0)))
    assert "samples 1 shards 1" in text
    assert "is not known: there is one split alone" in words(page_of(tmp_path / "out", near_duplicates=True))


def test_what_cannot_be_is_refused_and_leaves_no_page(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--out page.png: name an .html file"):
        ReportConfig(shards=tmp_path, out=Path("page.png"))
    with pytest.raises(UsageError, match="--sample 0"):
        ReportConfig(shards=tmp_path, sample=0)
    with pytest.raises(UsageError, match="--count 0"):
        ReportConfig(shards=tmp_path, count=0)
    with pytest.raises(UserError, match=r"has no index.json"):
        report_shards(ReportConfig(shards=tmp_path, out=tmp_path / "page.html"))
    shards = make(tmp_path / "set")
    whole = (shards / "index.json").read_text()
    (shards / "index.json").write_text(whole.replace('"jpg":', '"jpe":'))
    with pytest.raises(UserError, match=r"its index names no photos"):
        report_shards(ReportConfig(shards=shards, out=tmp_path / "page.html"))
    (shards / "index.json").write_text(whole)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"--out .*taken/page.html cannot be written"):
        report_shards(ReportConfig(shards=shards, out=tmp_path / "taken/page.html"))
    assert not [*tmp_path.glob("*.html*")]
