"""Supervision: a run that fails is started again until it is done, or until there is no point in it."""

import hashlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from inpaint_dist import supervise
from inpaint_dist.errors import UsageError
from inpaint_dist.pulse import Place
from inpaint_dist.supervise import Ending, Patience, SuperviseConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as Linux has them")

ROOT = Path(__file__).parents[2]
LIMIT = 100
RANK = """
import os, signal, sys, time
from pathlib import Path
from inpaint_dist.pulse import PULSE
PULSE.begin()
starts = Path("starts")
with starts.open("a") as file: file.write("x")
number = len(starts.read_text())
def end(code):
    PULSE.end(code)
    sys.exit(code)
"""
MUTE_LAUNCHER = """
import subprocess, sys
code = subprocess.Popen([sys.executable, "rank.py"]).wait()
print("the launcher's last word")
sys.exit(1 if code else 0)
"""


def supervised(folder: Path, rank: str, *flags: str) -> "subprocess.Popen[str]":
    """Supervise a launcher of one process that passes no signals on, as accelerate's."""
    (folder / "rank.py").write_text(RANK + rank)
    (folder / "launcher.py").write_text(MUTE_LAUNCHER)
    words = ["--first-wait", "0.01", *flags, sys.executable, "launcher.py"]
    return subprocess.Popen(
        [sys.executable, "-m", "inpaint_dist.supervise", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def starts(folder: Path) -> int:
    path = folder / "starts"
    return len(path.read_text()) if path.exists() else 0


def until(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert met


def test_a_run_that_fails_at_the_same_step_is_given_up_with_the_evidence(tmp_path: Path):
    rank = "PULSE.enter('step', 57)\nprint('x.tar: damaged', file=sys.stderr)\nend(1)"
    process = supervised(tmp_path, rank)
    out, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert starts(tmp_path) == 3
    assert out == "the launcher's last word\n" * 3
    verdict = said.split("supervise: ")[-1].splitlines()
    assert verdict[0] == (
        "giving up: 3 failures in a row in step 57; the last one: exit code 1 in step 57 (rank 0 with 1). "
        "It printed last:"
    )
    assert sorted(line.strip() for line in verdict[1:]) == ["the launcher's last word", "x.tar: damaged"]


def test_a_run_that_comes_further_each_time_is_started_until_it_is_done(tmp_path: Path):
    process = supervised(tmp_path, "PULSE.enter('step', 10 * number)\nend(1 if number < 6 else 0)")
    process.communicate(timeout=LIMIT)
    assert (process.returncode, starts(tmp_path)) == (0, 6)


def test_overwrite_is_of_the_first_start_that_begins_to_train(tmp_path: Path):
    """Each later one goes on from what the one before it saved."""
    rank = """
if number > 1: PULSE.enter("step", number)
with Path("words").open("a") as file: file.write(" ".join(sys.argv[1:]) + ";")
end(0 if number == 3 else 1)
"""
    (tmp_path / "rank.py").write_text(RANK + rank)
    words = [sys.executable, "rank.py", "--overwrite", "--max-steps"]
    done = subprocess.run(
        [sys.executable, "-m", "inpaint_dist.supervise", "--first-wait", "0.01", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "words").read_text() == "--overwrite --max-steps;--overwrite --max-steps;--max-steps;"


@pytest.mark.parametrize(
    ("code", "flags", "number"), [(2, (), 1), (75, (), 1), (75, ("--when-preempted", "relaunch"), 2)]
)
def test_wrong_flags_are_never_tried_again_and_a_preempted_run_only_where_asked(
    code: int, flags: tuple[str, ...], number: int, tmp_path: Path
):
    process = supervised(tmp_path, f"PULSE.enter('step', 5)\nend({code} if number == 1 else 0)", *flags)
    process.communicate(timeout=LIMIT)
    assert (process.returncode, starts(tmp_path)) == (code if number == 1 else 0, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=str)
def test_a_signal_reaches_the_process_of_a_launcher_that_would_not_pass_it_on_and_nothing_is_started_again(
    number: signal.Signals, tmp_path: Path
):
    rank = """
from inpaint_dist.stopping import listening
with listening() as stop:
    PULSE.enter("step", 1)
    stop.stage = "stepping"
    Path("ready").touch()
    while stop.asked_by is None: time.sleep(0.01)
    time.sleep(0.5)  # it saves
    Path("asked").write_text(stop.asked_by)
    end(75)
"""
    process = supervised(tmp_path, rank, "--when-preempted", "relaunch")
    until((tmp_path / "ready").exists)
    process.send_signal(number)
    process.communicate(timeout=LIMIT)
    assert (process.returncode, starts(tmp_path)) == (75, 1)
    assert (tmp_path / "asked").read_text() == number.name


def test_a_process_that_stays_stopped_is_killed_and_the_run_started_again(tmp_path: Path):
    rank = "PULSE.enter('step', 5)\nif number == 1: os.kill(os.getpid(), signal.SIGSTOP)\nend(0)"
    process = supervised(tmp_path, rank, "--stopped-timeout", "0.1")
    _, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, starts(tmp_path)) == (0, 2)
    assert "supervise: rank 0 in step 5 was stopped for too long (--stopped-timeout): killed" in said


def test_a_supervisor_that_is_killed_leaves_nobody_behind(tmp_path: Path):
    from inpaint_dist.host import is_running

    rank = """
from inpaint_dist.host import signal_at_parents_end
signal_at_parents_end(9)
Path("ready.part").write_text(f"{os.getpid()} {os.getppid()}")
Path("ready.part").rename("ready")
time.sleep(600)
"""
    process = supervised(tmp_path, rank)
    until((tmp_path / "ready").exists)
    others = [int(word) for word in (tmp_path / "ready").read_text().split()]
    assert all(map(is_running, others))
    process.kill()
    process.communicate(timeout=LIMIT)
    until(lambda: not any(map(is_running, others)), 2)


def ending(code: int, step: int, *codes: int | None) -> Ending:
    return Ending(code, [Place(1, rank, len(codes), step, "step", one) for rank, one in enumerate(codes)], [])


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (ending(0, 9, 0, 0), "done"),
        (ending(1, 9, 75, 75), "preempted"),
        (ending(-15, 9, 75), "preempted"),
        (ending(75, 9), "preempted"),
        (ending(1, 0, 75, 1), "failed"),  # the second failed, and the launcher ended the first
        (ending(1, 0, 75, None), "failed"),
        (ending(-9, 9, 75), "failed"),  # the launcher was killed
        (ending(1, 0, 2, None), "usage"),
        (ending(2, 0), "usage"),  # the launcher's own flags
        (ending(1, 0), "failed"),
    ],
)
def test_what_an_ending_means(how: Ending, kind: str):
    assert how.kind == kind


def test_patience_ends_at_the_same_step_or_without_progress_and_waits_double_meanwhile():
    patience = Patience(SuperviseConfig(first_wait=1.0, longest_wait=6.0, give_up_without_progress=6))
    heard, waits = [], []
    for step in (10, 10, 20, 7, 8, 9, 7, 8):
        heard.append(patience.note(ending(1, step, None)))
        waits.append(patience.wait)
    assert waits == [1, 2, 1, 2, 4, 6, 6, 6]
    assert heard == [None] * 7 + ["6 failures in a row, none of which came further than step 20"]


def test_the_command_begins_with_the_first_word_that_is_no_flag():
    for words in (["--first-wait", "2", "a", "--b", "3"], ["--first-wait=2", "--", "a", "--b", "3"]):
        config, command = supervise.parse(words)
        assert (config.first_wait, command) == (2.0, ["a", "--b", "3"])
    with pytest.raises(UsageError, match="give the command to supervise"):
        supervise.parse(["--first-wait", "2"])


# ------------------------------------------------------------------------------------------ real runs, really killed


def killed_again_and_again(
    command: Sequence[str], ranks: Callable[[int], list[int]], run: Path, kills: int, total: int
) -> tuple[int, float]:
    """Supervise a run and kill one of its ranks after so many further steps, again and again.

    Returns:
        The exit code, and the median of the seconds from a kill to the start of the next launcher.
    """
    chance, waits = random.Random(0), list[float]()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    words = [sys.executable, "-m", "inpaint_dist.supervise", "--first-wait", "0.01", *command]
    with (run.parent / "said").open("w") as said:
        process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=said, stderr=said)
    try:
        for kill in range(kills):
            target = (kill + 1) * total // (kills + 1)
            until(lambda target=target: process.poll() is not None or newest_step(run) >= target)
            assert process.poll() is None
            time.sleep(chance.random() * 0.1)
            before, launcher = ranks(process.pid), children(process.pid)
            killed = time.monotonic()
            os.kill(chance.choice(before), signal.SIGKILL)
            until(lambda launcher=launcher: {*children(process.pid)} - {*launcher})
            waits.append(time.monotonic() - killed)
            until(lambda before=before: (now := ranks(process.pid)) and not {*now} & {*before})
        return process.wait(LIMIT), statistics.median(waits)
    finally:
        process.kill()
        process.wait()


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def newest_step(run: Path) -> int:
    path = run / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return max((line["step"] for line in whole), default=0)


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "generator.safetensors").read_bytes()).hexdigest()


def test_two_ranks_that_are_killed_again_and_again_end_in_the_bits_of_the_unbroken_run(
    warm: Any, shards: Path, tiny: tuple[str, ...], tmp_path: Path, record_property: Callable[[str, object], None]
):
    flags = ["--max-steps", "80", "--checkpoint-every", "5", "--eval-every", "40", "--sample-every", "1000"]
    unbroken = warm.start(tmp_path / "unbroken", *flags, world=2)
    assert unbroken.ended() == [0, 0]
    run, out = tmp_path / "broken" / "run", tmp_path / "broken"
    out.mkdir()
    words = ["unet", "--shards", str(shards), "--output-dir", str(run), *tiny, "--cpu", "--global-batch-size", "4"]
    words += ["--report-every", "1", "--workers", "0", *flags]
    command = [sys.executable, str(Path(__file__).with_name("launcher.py")), "2", str(out), *words]

    def ranks(_: int) -> list[int]:
        return [int(word) for word in (out / "ranks").read_text().split()]

    code, wait = killed_again_and_again(command, ranks, run, kills=3, total=80)
    record_property("median seconds from kill -9 to the next start, of 3", round(wait, 2))
    assert code == 0
    said = (out / "said").read_text()
    assert said.count("supervise: exit code 1 in step") == 3
    assert sha256(run) == sha256(unbroken.run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_by_accelerate_that_is_killed_twenty_times_ends_in_the_bits_of_the_unbroken_run(
    warm: Any, shards: Path, tiny: tuple[str, ...], tmp_path: Path, record_property: Callable[[str, object], None]
):
    flags = ["--max-steps", "1000", "--checkpoint-every", "5", "--eval-every", "200", "--sample-every", "1000"]
    unbroken = warm.start(tmp_path / "unbroken", *flags, world=2)
    assert unbroken.ended(600) == [0, 0]
    run = tmp_path / "broken" / "run"
    run.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = ["unet", "--shards", str(shards), "--output-dir", str(run), *tiny, "--cpu", "--global-batch-size", "4"]
    words += ["--report-every", "1", "--workers", "0", *flags]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", str(port), "-m", "inpaint_dist.train", *words]

    def ranks(supervisor: int) -> list[int]:
        """Children of the launcher; what a launcher or a rank forks for a moment is none of them."""
        with suppress(OSError):
            found = [rank for launcher in children(supervisor) for rank in children(launcher)]
            return [rank for rank in found if b"\0LOCAL_RANK=" in Path(f"/proc/{rank}/environ").read_bytes()]
        return []

    code, wait = killed_again_and_again(command, ranks, run, kills=20, total=1000)
    record_property("median seconds from kill -9 to the next start, of 20", round(wait, 2))
    assert code == 0
    assert sha256(run) == sha256(unbroken.run)
