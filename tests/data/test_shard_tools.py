"""The doors in tools/, as a stranger runs them, and the sample that comes with the project."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from inpaint_dist.data.contact_sheet import SheetConfig, hole_ratios, show_shards
from inpaint_dist.data.headers import jpeg_without_metadata
from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.packed_masks import encode_mask
from inpaint_dist.data.shard_reader import ShardReader
from inpaint_dist.data.shard_writer import ShardWriter, write_index
from inpaint_dist.data.shards import SPLITS, ShardIndex
from inpaint_dist.data.verification import verify
from inpaint_dist.errors import UsageError, UserError

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "shards/sample"
HEAVY = ("torch", "matplotlib", "wandb", "webdataset", "torchmetrics")


def tool(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"tools/{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["make_shards", "check_shards", "show_shards", "report_shards"])
def test_help_loads_nothing_heavy(name: str, tmp_path: Path):
    script = f"""
import runpy, sys
sys.argv = ["{name}", "--help"]
try:
    runpy.run_path({str(ROOT / f"tools/{name}.py")!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *(module for module in {HEAVY!r} if module in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "LOADED\n" in done.stdout
    assert "--" in done.stdout


def test_from_photos_to_a_checked_and_drawn_set_of_shards(tmp_path: Path):
    for number in range(12):
        photo = np.full((40, 60, 3), 20 * number, np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{number}.jpg").write_bytes(simplejpeg.encode_jpeg(photo))
        mask = np.zeros((48, 48), np.uint8)
        mask[number : number + 9] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / f"masks/{number}.png").write_bytes(encode_mask(mask))
    arguments = (
        "photos",
        "--masks",
        "masks",
        "--out",
        "out",
        "--size",
        "32",
        "--val-fraction",
        "0.3",
        "--workers",
        "1",
    )
    made = tool("make_shards", *arguments, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert re.match(r"out: \d+ train and \d+ val samples in 2 shards", made.stdout)
    checked = tool("check_shards", "out", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == "12 samples in 2 shards read byte for byte: no fault\n"
    shown = tool("show_shards", "out", "--out", "sheet.png", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None
    index = ShardIndex.load(tmp_path / "out", "train")
    member = index.member(0, "mask.png")
    with (tmp_path / "out" / index.shards[0].name).open("r+b") as file:
        file.seek(member.offset + member.size - 20)
        file.write(b"\xaa\xbb")
    checked = tool("check_shards", "out", cwd=tmp_path)
    assert checked.returncode == 1
    key = index.keys[0]
    assert f"train-000000.tar: {key}: {key}.mask.png has changed: its checksum does not fit" in checked.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "code", "message"),
    [
        ("make_shards", ("--masks", "m", "--out", "o"), 2, "PHOTOS is missing"),
        ("make_shards", ("nowhere", "--masks", "m", "--out", "o"), 1, "PHOTOS nowhere: no such file or folder"),
        ("make_shards", ("nowhere", "--masks", "m", "--out", "o", "--size", "0"), 2, "--size 0: from 8 to 8192"),
        ("check_shards", ("nowhere",), 1, "nowhere: no such folder of shards"),
        ("show_shards", ("nowhere",), 1, "nowhere: no such folder of shards"),
        ("show_shards", ("nowhere", "--out", "x.tiff"), 2, "--out x.tiff: name a .png"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_an_exit_code(
    name: str, arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
):
    done = tool(name, *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in re.sub(r"[\s│]+", " ", done.stderr)  # flags that are wrong may come in a box
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_sheet_shows_photo_mask_and_masked_side_by_side(tmp_path: Path):
    size, mask = 96, np.zeros((96, 96), np.uint8)
    mask[:, :48] = 255
    photo = np.full((size, size, 3), (0, 0, 250), np.uint8)
    sample = {"jpg": simplejpeg.encode_jpeg(photo), "mask.png": encode_mask(mask), "json": b"{}"}
    with ShardWriter(tmp_path / "train-000000.tar") as writer:
        writer.add("a", sample)
    write_index(tmp_path, size=size, settings={}, made_with={}, records=[writer.record])
    lines = show_shards(SheetConfig(shards=tmp_path, out=tmp_path / "deep/sheet.png", count=3))
    assert lines[0] == "train: 1 samples of 96x96, mean hole 50.0%"
    sheet = cv2.imread(str(tmp_path / "deep/sheet.png"))[..., ::-1].astype(int)
    top, tile, step = 22, 192, 198
    row = sheet[top + tile // 2]
    blue, white, black, grey = (0, 0, 250), (255,) * 3, (0,) * 3, (127,) * 3
    for number, (left, right) in enumerate([(blue, blue), (white, black), (grey, blue)]):
        assert np.abs(row[number * step + tile // 4] - left).max() < 6
        assert np.abs(row[number * step + 3 * tile // 4] - right).max() < 6
    assert (hole_ratios(ShardIndex.load(tmp_path, "train")) == [0.5]).all()


def test_shards_without_any_sample_cannot_be_drawn(tmp_path: Path):
    write_index(tmp_path, size=32, settings={}, made_with={}, records=[])
    with pytest.raises(UserError, match="holds no sample"):
        show_shards(SheetConfig(shards=tmp_path))
    with pytest.raises(UsageError, match="--count 0"):
        SheetConfig(shards=tmp_path, count=0)


def test_the_embedded_sample_is_whole():
    assert verify(SAMPLE) == []
    train, val = (ShardIndex.load(SAMPLE, split) for split in SPLITS)
    assert (len(train), len(val), train.size) == (84, 25, 256)
    assert not set(train.keys) & set(val.keys)
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 5_000_000


def test_every_photo_of_the_embedded_sample_has_its_author_and_licence():
    row = r"^\| (train|val) \| (\S+) \| (.+?) \| .+ \| (.+?) \| .+ \|$"
    rows = re.findall(row, (SAMPLE / "ATTRIBUTION.md").read_text(), re.MULTILINE)
    listed = {(split, key) for split, key, _, _ in rows}
    assert listed == {(split, key) for split in SPLITS for key in ShardIndex.load(SAMPLE, split).keys}
    assert {licence for *_, licence in rows} == {"CC BY 4.0", "CC BY 2.0", "CC0 1.0", "public domain"}


def test_the_photos_of_the_embedded_sample_are_the_bytes_of_their_files():
    photos = ROOT.parent / "shared/data/sample_photos"
    if not photos.is_dir():
        pytest.skip("the sample's photos are not beside this checkout")
    for split in SPLITS:
        index = ShardIndex.load(SAMPLE, split)
        with ShardReader(index) as reader:
            for i, key in enumerate(index.keys):
                stored = (photos / split / f"{key}.jpg").read_bytes()
                assert reader.read(i, "jpg") == jpeg_without_metadata(stored)


def test_the_python_in_the_formats_description_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "shards/README.md").read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        if "webdataset" in block and find_spec("webdataset") is None:
            pytest.skip("webdataset is not installed")
        subprocess.run([sys.executable, "-c", block], cwd=ROOT, check=True, capture_output=True)
