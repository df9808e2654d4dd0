"""A killed make_shards run goes on by the same command, redoes what was under way alone, and ends in the same bytes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_dist.data.sharding import make_shards
from inpaint_dist.data.verification import verify

ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL

# Runs make_shards in forked children: one that dies right before its step k on the disk, one that goes on; k = 1, 2, ….
AT_EVERY_STEP = """
import json, os, shutil, signal, sys
from hashlib import sha256
from pathlib import Path
from inpaint_dist import cli
from inpaint_dist.data import sharding

words, out, whole = sys.argv[1:-2], Path(sys.argv[-2]), Path(sys.argv[-1])
config = cli.parse(sharding.ShardingConfig, words, prog="", description="", positional=("photos",))

def run(die_before, log):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    steps, real = 0, sharding.run_jobs
    def audit(event, arguments):
        nonlocal steps
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            steps += 1
            if steps == die_before:
                os.kill(os.getpid(), signal.SIGKILL)
    def counting(jobs, *rest):
        log.write_text(json.dumps(jobs.names))
        return real(jobs, *rest)
    sharding.run_jobs = counting
    if die_before:
        sys.addaudithook(audit)
    sharding.make_shards(config)
    os._exit(0)

def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}

log, step = out.with_name("log.json"), 0
while True:
    step += 1
    shutil.rmtree(out, ignore_errors=True)
    status = run(step, log)
    left = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) if out.exists() else []
    log.write_text("[]")
    again = run(0, log)
    print(json.dumps([status, left, again, json.loads(log.read_text()), content(out) == content(whole)]))
    if status == 0:
        break
"""


def test_a_run_killed_before_any_of_its_steps_on_the_disk_goes_on_to_the_same_bytes(photos_and_masks, tmp_path: Path):
    make_shards(photos_and_masks.config(tmp_path / "whole"))
    shards = sorted(path.name for path in (tmp_path / "whole").glob("*.tar"))
    assert len(shards) == 8
    words = [*photos_and_masks.words(tmp_path / "out"), str(tmp_path / "out"), str(tmp_path / "whole")]
    done = subprocess.run([sys.executable, "-c", AT_EVERY_STEP, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *killed, last = map(json.loads, done.stdout.splitlines())
    assert last[0] == 0
    assert len(killed) > 45  # steps on the disk: each shard alone takes four
    for status, left, again, redone, same in killed:
        assert (status, again, same) == (KILLED, 0, True)
        finished = [] if "index.json" in left else [name for name in shards if f".unfinished/{name}.json" not in left]
        assert redone == finished
        tars = [name for name in left if name.endswith(".tar")]
        assert len(tars) - (len(shards) - len(redone)) in (0, 1)  # at most the one whose record was not there yet
    assert {len(redone) for *_, redone, _ in killed} == set(range(9))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_makes_each_finished_shard_once(photos_and_masks, tmp_path: Path, workers: int):
    photo = np.random.RandomState(3).randint(0, 255, (75, 100, 3)).astype(np.uint8)
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.resize(photo, (1200, 900)))
    for number in range(160):
        (tmp_path / f"photos/{number:03d}.jpg").hardlink_to(tmp_path / "photo.jpg")
    command = [
        *(sys.executable, str(ROOT / "tools/make_shards.py"), str(tmp_path / "photos")),
        *("--masks", str(photos_and_masks.masks), "--size", "64", "--samples-per-shard", "16"),
    ]
    out = tmp_path / "out"
    before: dict[str, tuple[int, int]] = {}
    for finished in (1, 4, 7):
        children = _kill_at(finished, [*command, "--workers", str(workers), "--out", str(out)], out)
        assert not (out / "index.json").exists()
        _wait_for_the_end_of(children)
        now = _finished(out)
        assert before.items() <= now.items()  # nothing that was finished was made again
        assert len(now) >= finished
        before = now
    subprocess.run([*command, "--workers", str(workers), "--out", str(out)], check=True, capture_output=True)
    subprocess.run([*command, "--workers", "2", "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    assert before.items() <= {path.name: _identity(path) for path in out.glob("*.tar")}.items()
    assert _content(out) == _content(tmp_path / "whole")
    assert verify(out) == []


def _kill_at(finished: int, command: list[str], out: Path) -> list[int]:
    """Start, and kill as soon as that many shards are finished; returns the workers that were there."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(_finished(out)) < finished:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = [int(child) for child in listing.read_text().split()] if listing.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    return children


def _wait_for_the_end_of(children: list[int]) -> None:
    """Workers must not outlive a parent that was killed: they would write beside the next run."""
    deadline = time.monotonic() + 30
    while any(_is_alive(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _finished(out: Path) -> dict[str, tuple[int, int]]:
    """Shards with a record: name → what changes when the file is written anew."""
    names = [path.name.removesuffix(".json") for path in (out / ".unfinished").glob("*.tar.json")]
    return {name: _identity(out / name) for name in names}


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
