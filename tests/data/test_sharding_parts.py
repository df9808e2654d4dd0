"""--part I/N and --merge: a job array makes the files of one machine, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

from inpaint_dist.data.sharding import PartReport, ShardingReport, make_shards
from inpaint_dist.data.verification import verify
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import alone_in

ROOT = Path(__file__).resolve().parents[2]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(photos_and_masks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine makes of them."""
    out = tmp_path_factory.mktemp("whole") / "out"
    make_shards(photos_and_masks.config(out))
    return content(out)


@pytest.mark.parametrize("parts", [1, 3, 11])
def test_parts_in_any_order_and_a_merge_make_the_bytes_of_one_run(photos_and_masks, whole, tmp_path: Path, parts: int):
    out = tmp_path / "out"
    reports = [make_shards(photos_and_masks.config(out, part=f"{part}/{parts}")) for part in range(parts, 0, -1)]
    assert all(isinstance(report, PartReport) for report in reports)
    assert sum(report.made for report in reports) == sum(name.endswith(".tar") for name in whole) == 8
    assert max(report.shards for report in reports) == -(-8 // parts)
    assert not (out / "index.json").exists()
    merged = make_shards(photos_and_masks.config(out, merge=True))
    assert isinstance(merged, ShardingReport)
    assert (merged.train + merged.val, merged.rejected) == (20, 1)
    assert content(out) == whole
    assert verify(out) == []


def test_a_part_again_makes_nothing_again_and_after_the_merge_says_that_all_is_there(
    photos_and_masks, whole, tmp_path: Path
):
    for expected in (3, 0):
        assert make_shards(photos_and_masks.config(tmp_path / "out", part="1/3")).made == expected
    lines = make_shards(photos_and_masks.config(tmp_path / "out", part="2/3")).lines()
    assert lines[0].endswith("out: part 2/3 is done, 3 shards (3 made now)")
    make_shards(photos_and_masks.config(tmp_path / "out", part="3/3"))
    for options in ({"merge": True}, {"part": "2/3"}, {"merge": True}):
        report = make_shards(photos_and_masks.config(tmp_path / "out", **options))
    assert any("there already: nothing was done" in note for note in report.notes)
    assert content(tmp_path / "out") == whole


def test_a_merge_without_all_parts_is_refused_and_names_those_to_run_again(photos_and_masks, whole, tmp_path: Path):
    out = tmp_path / "out"
    for part in ("1/4", "3/4"):
        make_shards(photos_and_masks.config(out, part=part))
    (out / "train-000002.tar").write_bytes(b"changed meanwhile")
    with pytest.raises(
        UserError, match=r"--merge: 5 of 8 shards .*out are not made \(train-000001.tar, train-000002.tar"
    ):
        make_shards(photos_and_masks.config(out, merge=True))
    with pytest.raises(UserError, match=r"run --part 2/4, 3/4, 4/4 again"):
        make_shards(photos_and_masks.config(out, merge=True))
    assert not (out / "index.json").exists()
    make_shards(photos_and_masks.config(out))  # one machine makes what is missing, and the index
    assert content(out) == whole


def test_parts_of_other_settings_or_of_another_number_are_refused(photos_and_masks, tmp_path: Path):
    make_shards(photos_and_masks.config(tmp_path / "out", part="1/4"))
    with pytest.raises(UserError, match=r"other settings \(quality 95, now 90\)"):
        make_shards(photos_and_masks.config(tmp_path / "out", part="2/4", quality=90))
    with pytest.raises(UserError, match=r"--part 2/3: .*was begun in 4 parts; give --part I/4, or run"):
        make_shards(photos_and_masks.config(tmp_path / "out", part="2/3"))


def test_a_shard_that_other_libraries_made_is_made_again(
    photos_and_masks, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inpaint_dist.data.sharding.MADE_WITH", {"opencv": "1.0"})
    make_shards(photos_and_masks.config(tmp_path / "out", part="1/2"))
    monkeypatch.undo()
    make_shards(photos_and_masks.config(tmp_path / "out", part="2/2"))
    with pytest.raises(UserError, match=r"--merge: 4 of 8 shards .*run --part 1/2 again"):
        make_shards(photos_and_masks.config(tmp_path / "out", merge=True))


def test_parts_run_side_by_side_but_not_beside_a_run_of_all(photos_and_masks, tmp_path: Path):
    out = tmp_path / "out"
    make_shards(photos_and_masks.config(out, part="1/2"))
    taken = pytest.raises(UserError, match="another make_shards is writing there")
    with alone_in(out, ValueError(), shared=True), alone_in(out / ".unfinished/part-1-of-2", ValueError()):
        with taken:
            make_shards(photos_and_masks.config(out, merge=True))
        with taken:
            make_shards(photos_and_masks.config(out, part="1/2"))
        assert make_shards(photos_and_masks.config(out, part="2/2")).made == 4
    with alone_in(out, ValueError()), taken:
        make_shards(photos_and_masks.config(out, part="2/2"))


def test_processes_of_a_job_array_may_all_start_at_once(photos_and_masks, whole, tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools/make_shards.py"), *photos_and_masks.words(out)]
    running = [subprocess.Popen([*command, "--part", f"{part}/3"], stdout=subprocess.PIPE) for part in (1, 2, 3)]
    said = [process.communicate(timeout=120)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert "the same command with --merge in place of --part writes the index" in said[0]
    subprocess.run([*command, "--merge"], check=True, capture_output=True)
    assert content(out) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "0/3"}, "--part 0/3: give I/N, as 3/16, with I from 1 to N"),
        ({"part": "4/3"}, "--part 4/3: give I/N"),
        ({"part": "3"}, "--part 3: give I/N"),
        ({"part": "1/3", "merge": True}, "--part, --merge and --executor dask: give one of them"),
        ({"executor": "dask"}, "--executor dask and --scheduler ADDRESS go together"),
        ({"scheduler": "tcp://x:1"}, "--executor dask and --scheduler ADDRESS go together"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(photos_and_masks, tmp_path: Path, options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        photos_and_masks.config(tmp_path / "out", **options)
