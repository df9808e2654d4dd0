"""tools/make_masks.py as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_masks.py"
HEAVY = {"torch", "torchvision", "torchmetrics", "matplotlib", "wandb", "webdataset", "accelerate", "PIL"}


def run(*arguments: str | Path, cwd: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *options, str(TOOL), *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_one_command_makes_masks_and_prints_their_histogram(tmp_path: Path) -> None:
    limits = ["--hole-ratio", "0.1", "0.5"]
    words = ["masks", "--count", "20", "--size", "64", "--family", "mat-small", "--seed", "5", *limits]
    done = run(*words, "--workers", "2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sum(int(line.split()[1]) for line in lines[1:11]) == 20
    assert lines[11].startswith("mean hole ratio 0.")
    rows = [json.loads(line) for line in (tmp_path / "masks" / "masks.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert all(row["family"] == "mat-small" and 0.1 <= row["hole_ratio"] <= 0.5 for row in rows)


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path, options=("-X", "importtime"))
    assert done.returncode == 0
    assert "--hole-ratio" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "numpy" in imported  # the list is what it seems
    assert not imported & HEAVY


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--family", "lama-trian"], 2, "Did you mean lama-train"),
        (["--hole-ratio", "0.5", "0.1"], 2, "is no range"),
        ([], 1, "holds other.txt"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_an_exit_code(
    tmp_path: Path, words: list[str], code: int, told: str
) -> None:
    (tmp_path / "other.txt").write_text("")
    done = run(tmp_path, *words, cwd=tmp_path)
    assert done.returncode == code
    assert told in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.txt"]


def test_a_killed_run_leaves_whole_masks_and_no_list_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    out = tmp_path / "masks"
    words = ["--count", "4000", "--size", "64", "--family", "lama-thin"]
    with subprocess.Popen([sys.executable, str(TOOL), str(out), *words], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (out / "000050.png").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "masks.jsonl").exists()
    masks = sorted(out.glob("*.png"))
    assert 50 < len(masks) < 4000
    assert all(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) is not None for mask in masks)

    assert run(out, *words, cwd=tmp_path).returncode == 0
    assert len((out / "masks.jsonl").read_text().splitlines()) == 4000
    assert not list(out.glob("*.part"))
