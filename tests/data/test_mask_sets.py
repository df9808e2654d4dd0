"""A folder of masks: its bytes, its list, its refusals, and what a run that broke off leaves."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_dist.data import mask_sets
from inpaint_dist.data.mask_sets import MaskRow, MaskSetConfig, MaskSetReport, make_masks
from inpaint_dist.data.masks import draw_mask, mask_rng
from inpaint_dist.errors import UsageError, UserError


def content(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir())}


def read_png_rows(data: bytes) -> tuple[tuple[int, ...], np.ndarray]:
    """Header fields and raw rows (filter byte first) of a PNG, by the specification alone."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size)[0] == zlib.crc32(kind + body)
        chunks.append((kind, body))
        at += 12 + size
    header = struct.unpack(">IIBBBBB", dict(chunks)[b"IHDR"])
    raw = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    return header, np.frombuffer(raw, np.uint8).reshape(header[1], -1)


def test_a_folder_holds_the_masks_of_its_settings_and_a_list_of_them(tmp_path: Path) -> None:
    report = make_masks(MaskSetConfig(out=tmp_path / "set", count=7, size=50, family="lama-medium", seed=3))
    names = [f"{index:06d}.png" for index in range(7)]
    assert sorted(content(tmp_path / "set")) == [*names, "masks.jsonl", "settings.json"]
    rows = [json.loads(line) for line in (tmp_path / "set" / "masks.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == names
    for index, row in enumerate(rows):
        mask = cv2.imread(str(tmp_path / "set" / row["file"]), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask, draw_mask("lama-medium", 50, 50, mask_rng("lama-medium", 50, 3, index)))
        assert row["family"] == "lama-medium"
        assert row["hole_ratio"] == pytest.approx((mask > 0).mean(), abs=1e-6)
    assert report.mean == pytest.approx(np.mean([row["hole_ratio"] for row in rows]))


@pytest.mark.parametrize("size", [50, 64])
def test_masks_are_1_bit_png_whose_rows_use_no_filter(tmp_path: Path, size: int) -> None:
    make_masks(MaskSetConfig(out=tmp_path, count=3, size=size))
    for index in range(3):
        header, rows = read_png_rows((tmp_path / f"{index:06d}.png").read_bytes())
        assert header == (size, size, 1, 0, 0, 0, 0)  # 1 bit, grey, not interlaced
        assert not rows[:, 0].any()
        bits = np.unpackbits(rows[:, 1:], axis=1)[:, :size]
        assert np.array_equal(bits * 255, cv2.imread(str(tmp_path / f"{index:06d}.png"), cv2.IMREAD_GRAYSCALE))


def test_the_bytes_do_not_depend_on_workers_or_on_the_run(tmp_path: Path) -> None:
    written = []
    for workers in (0, 0, 1, 2):  # the second run goes into the first's folder
        config = MaskSetConfig(out=tmp_path / str(workers), count=300, size=16, hole_ratio=(0.3, 0.6), workers=workers)
        written.append((make_masks(config), content(config.out)))
    assert written[0] == written[1] == written[2] == written[3]
    assert len(written[0][1]) == 302
    last = cv2.imread(str(tmp_path / "2" / "000299.png"), cv2.IMREAD_GRAYSCALE)
    rng = mask_rng("lama-train", 16, 0, 299)  # the place in the whole set counts, not that in a worker's share
    assert np.array_equal(last, draw_mask("lama-train", 16, 16, rng, hole_ratio=(0.3, 0.6)))


def test_a_mask_does_not_depend_on_how_many_others_are_drawn(tmp_path: Path) -> None:
    make_masks(MaskSetConfig(out=tmp_path / "few", count=2, size=32))
    make_masks(MaskSetConfig(out=tmp_path / "many", count=9, size=32))
    few, many = content(tmp_path / "few"), content(tmp_path / "many")
    assert few["000001.png"] == many["000001.png"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": 4}, "count 3 (now 4)"),
        ({"size": 40}, "size 32 (now 40)"),
        ({"seed": 1}, "seed 0 (now 1)"),
        ({"family": "center"}, "family lama-train (now center)"),
        ({"hole_ratio": (0.1, 0.5)}, "hole_ratio None (now [0.1, 0.5])"),
    ],
)
def test_other_settings_into_a_folder_with_masks_are_refused_by_name(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    settings = {"out": tmp_path, "count": 3, "size": 32}
    make_masks(MaskSetConfig(**settings))
    before = content(tmp_path)
    with pytest.raises(UserError) as refusal:
        make_masks(MaskSetConfig(**{**settings, **change}))
    assert f"made with other settings: {told}." in str(refusal.value)
    assert content(tmp_path) == before


def test_masks_of_another_law_of_the_same_name_are_refused(tmp_path: Path) -> None:
    make_masks(MaskSetConfig(out=tmp_path, count=1, size=32))
    settings = tmp_path / "settings.json"
    settings.write_text(settings.read_text().replace("max_width=100", "max_width=99"))
    with pytest.raises(UserError, match=r"law \(another version's\)"):
        make_masks(MaskSetConfig(out=tmp_path, count=1, size=32))


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds holiday\.jpg"):
        make_masks(MaskSetConfig(out=tmp_path, count=1))
    assert content(tmp_path) == {"holiday.jpg": b"mine"}


def test_a_folder_whose_settings_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(UserError, match=r"settings\.json cannot be read"):
        make_masks(MaskSetConfig(out=tmp_path, count=1))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(UserError, match="out"):
            make_masks(MaskSetConfig(out=out, count=1))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root may write: /proc")
def test_a_folder_that_cannot_be_written_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match="/proc/masks: "):
        make_masks(MaskSetConfig(out=Path("/proc/masks"), count=1))


def test_what_a_run_that_broke_off_left_is_finished_by_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MaskSetConfig(out=tmp_path / "broken", count=5, size=32)
    encode, left = mask_sets.encode_mask, iter(range(3))

    def encode_until_the_disk_is_full(mask: np.ndarray) -> bytes:
        if next(left, None) is None:
            raise OSError(28, "No space left on device", str(config.out / "000003.png.part"))
        return encode(mask)

    monkeypatch.setattr(mask_sets, "encode_mask", encode_until_the_disk_is_full)
    with pytest.raises(UserError, match=r"000003\.png\.part: No space left on device"):
        make_masks(config)
    assert sorted(content(config.out)) == ["000000.png", "000001.png", "000002.png", "settings.json"]

    monkeypatch.setattr(mask_sets, "encode_mask", encode)
    with pytest.raises(UserError, match="other settings"):
        make_masks(MaskSetConfig(out=config.out, count=5, size=32, seed=1))
    make_masks(config)
    make_masks(MaskSetConfig(out=tmp_path / "unbroken", count=5, size=32))
    assert content(config.out) == content(tmp_path / "unbroken")


def test_masks_that_had_to_be_adjusted_are_marked_and_counted(tmp_path: Path) -> None:
    report = make_masks(MaskSetConfig(out=tmp_path, count=6, size=64, family="mat-large", hole_ratio=(0.85, 0.851)))
    rows = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
    assert all(0.85 <= row["hole_ratio"] <= 0.851 for row in rows)
    assert report.adjusted == sum(row["adjusted"] for row in rows) > 0
    assert f"{report.adjusted} masks met --hole-ratio in none of their draws" in report.lines()[-1]


def test_the_histogram_counts_every_mask_once() -> None:
    ratios = (0.0, 0.0999, 0.1, 0.55, 0.95, 1.0)
    report = MaskSetReport(rows=tuple(MaskRow("x.png", "center", ratio, adjusted=False) for ratio in ratios))
    assert report.histogram == (2, 1, 0, 0, 0, 1, 0, 0, 0, 2)
    assert report.lines()[1:3] == [f"  0.0-0.1  2  {'#' * 40}", f"  0.1-0.2  1  {'#' * 20}"]
    assert report.lines()[-1] == "mean hole ratio 0.450 of 6 masks"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": 0}, "--count 0"),
        ({"count": 1_000_001}, "--count 1000001"),
        ({"size": 4}, "--size 4"),
        ({"workers": -1}, "--workers -1"),
        ({"family": "mat-larg"}, "Did you mean mat-large"),
        ({"family": "center", "hole_ratio": (0.9, 0.95)}, "--hole-ratio 0.9 0.95"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        MaskSetConfig(**{"out": tmp_path / "new", **change})
    assert not (tmp_path / "new").exists()
