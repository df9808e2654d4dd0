"""A cluster's long night: a supervised run of two ranks, and faults of every kind drawn by a seed, one after another.

All of them leave the numbers alone, so that the run ends in the bits of one that only met the same bad samples.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inpaint_dist import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc as Linux has them")

ROOT = Path(__file__).parents[2]
EVERY = 5
"""Steps between two checkpoints."""
LAUNCHER = """
import json, os, signal, sys, time
from pathlib import Path
out = Path(sys.argv[1])
number = len([*out.glob("request-*.json")])
told = {name: value for name, value in os.environ.items() if name.startswith("INPAINT_DIST_")}
(out / "request.part").write_text(json.dumps(told))
(out / "request.part").rename(out / f"request-{number}.json")
while not (out / f"ranks-{number}.json").exists(): time.sleep(0.01)
folder, *ranks = json.loads((out / f"ranks-{number}.json").read_text())
codes, failed_at = {}, None
while len(codes) < len(ranks):
    for rank in range(len(ranks)):
        path = Path(folder, f"rank-{rank}.code")
        if rank not in codes and path.exists(): codes[rank] = int(path.read_text())
    if failed_at is None and any(codes.values()): failed_at = time.monotonic()
    if failed_at is not None and len(codes) < len(ranks):
        late = time.monotonic() - failed_at
        for rank in {*range(len(ranks))} - {*codes} if late > 0.2 else ():
            try: os.kill(ranks[rank], signal.SIGKILL if late > 5 else signal.SIGTERM)
            except ProcessLookupError: pass
        time.sleep(0.3)
    time.sleep(0.01)
sys.exit(1 if any(codes.values()) else 0)
"""
"""What torchrun is to a run, without its seconds: the test forks the ranks for it, and it ends all when one fails."""
PACE = 0.03
"""Seconds a step at least: signals and the test's own look at the run take longer than steps of so small a network."""
CODE = """
import errno, time
from pathlib import Path
from inpaint_dist import checkpoint
from inpaint_dist.trainer import Trainer
step, save_file = Trainer.step, checkpoint.save_file

def spoiled(self, batch, **more):
    time.sleep({pace})
    if self.launch.rank == 1 and self.step_count + 1 in {bad}:
        batch.image[0, 0, 3, 3] = float("nan")
    return step(self, batch, **more)

def full(tensors, path, *more):
    if Path({full!r}).exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    save_file(tensors, path, *more)

Trainer.step, checkpoint.save_file = spoiled, full
"""


@dataclass
class Night:
    """A run under supervision, and what is done to it."""

    nursery: Any
    out: Path
    flags: tuple[str, ...]
    code: str
    chance: random.Random
    starts: int = 0
    ranks: Any = None
    process: Any = None
    done: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.out / "run"

    def begin(self) -> None:
        (self.out / "launcher.py").write_text(LAUNCHER)
        words = ["--first-wait", "0.01", "--stopped-timeout", "0.5", "--when-preempted", "relaunch"]
        launcher = [sys.executable, str(self.out / "launcher.py"), str(self.out)]
        command = [sys.executable, "-m", "inpaint_dist.supervise", *words, *launcher]
        with (self.out / "said").open("w") as said:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)

    def serve(self) -> bool:
        """Fork ranks where the launcher asks for them; whether the run is still under way."""
        asked = self.out / f"request-{self.starts}.json"
        if asked.exists():
            self.ranks = self.nursery.start(
                self.run, *self.flags, world=2, code=self.code, **json.loads(asked.read_text())
            )
            part = self.out / "ranks.part"
            part.write_text(json.dumps([str(self.ranks.out), *self.ranks.processes]))
            part.rename(self.out / f"ranks-{self.starts}.json")
            self.starts += 1
        time.sleep(0.01)
        return self.process.poll() is None

    def wait(self, condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.serve(), (self.out / "said").read_text()
            assert time.monotonic() < deadline, (self.out / "said").read_text()

    def said(self, words: str) -> int:
        path = self.run / "log.txt"
        return path.read_text().count(words) if path.exists() else 0

    def newest(self) -> Path:
        return checkpoint.list_checkpoints(self.run / "checkpoints")[-1]

    def meet(self, fault: str) -> None:
        """Do one thing to the run; it is started anew after each."""
        ranks, starts = self.ranks, self.starts
        if fault == "disk full":
            before = self.said("could not be written")
            (self.out / "full").touch()
            self.wait(lambda: self.said("could not be written") > before)
            (self.out / "full").unlink()
        if fault in ("kill", "disk full"):
            ranks.send(signal.SIGKILL, self.chance.randrange(2))
        elif fault == "SIGTERM":
            ranks.send(signal.SIGTERM, *self.chance.choice([(0,), (1,), (0, 1)]))
        elif fault == "stop":
            ranks.send(signal.SIGSTOP, self.chance.randrange(2))
        else:
            ranks.send(signal.SIGSTOP)
            if fault == "checkpoint removed":
                shutil.rmtree(self.newest())
            else:
                path = self.chance.choice(sorted(self.newest().glob("*.safetensors")))
                data = bytearray(path.read_bytes())
                data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
                path.write_bytes(data)
            ranks.send(signal.SIGKILL)
        self.wait(lambda: self.starts > starts)
        self.done.append(fault)


KINDS = ("kill", "SIGTERM", "stop", "disk full", "checkpoint flipped", "checkpoint removed")


def a_night(nursery: Any, out: Path, seed: int, faults: int, steps: int, record: Callable[[str, object], None]) -> None:
    """One run undisturbed but for its bad samples, one through the night; both end alike."""
    chance = random.Random(seed)
    drawn = [*KINDS, *chance.choices(KINDS[:2], k=faults - len(KINDS) - 2)]
    chance.shuffle(drawn)
    bad = sorted(chance.sample(range(2, steps), 2))  # the last two faults: samples that are not finite
    flags = ("--max-steps", str(steps), "--checkpoint-every", str(EVERY), "--keep-checkpoints", "4")
    flags += ("--eval-every", "100000", "--sample-every", "100000")
    code = {"bad": set(bad), "full": str(out / "full")}
    night = Night(nursery, out, flags, CODE.format(**code, pace=PACE), chance)
    unbroken = nursery.start(out / "unbroken", *flags, world=2, code=CODE.format(**code, pace=0.0))
    assert unbroken.ended(600) == [0, 0], unbroken.said()
    began = time.monotonic()
    night.begin()
    try:
        for number, fault in enumerate(drawn):
            after = 4 * EVERY + number * (steps - 6 * EVERY) // len(drawn) + chance.randrange(EVERY)
            night.wait(
                lambda after=after: night.said("going on from") >= night.starts - 1 and newest_step(night.run) >= after
            )
            night.meet(fault)
        while night.serve():
            assert time.monotonic() - began < 1200
    finally:
        night.process.kill()
        night.process.wait()
    record("faults", dict(Counter([*night.done, "sample not finite", "sample not finite"])))
    record("seconds", round(time.monotonic() - began, 1))
    said = (out / "said").read_text()
    assert night.process.returncode == 0, said
    assert night.starts == len(drawn) + 1
    preempted = said.count("supervise: the run was preempted; it is started again")
    assert (preempted, said.count("; started again in")) == (
        drawn.count("SIGTERM"),
        len(drawn) - drawn.count("SIGTERM"),
    )
    assert night.said("passed over step-") >= 1
    assert said.count("was stopped for too long") == 1
    assert sha256(night.run) == sha256(unbroken.run)
    runs = (night.run, unbroken.run)
    mine, theirs = (json.loads((run / "history.jsonl").read_text().splitlines()[-1]) for run in runs)
    assert mine["skipped_steps"] == theirs["skipped_steps"] == 2
    assert history(night.run) == history(unbroken.run)
    skipped = [json.loads(line) for line in (night.run / "faults.jsonl").read_text().splitlines()]
    assert {line["step"] for line in skipped} == {*bad}
    assert all(line["term"] == "batch" and line["ranks"] == [1, 1] for line in skipped)


def newest_step(run: Path) -> int:
    path = run / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def history(run: Path) -> list[tuple[float, float | None, float | None]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("g/loss"), line.get("d/loss")) for line in lines]


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "generator.safetensors").read_bytes()).hexdigest()


@pytest.mark.timeout(600)
def test_a_run_through_a_night_of_ten_faults_ends_in_the_bits_of_the_unbroken_one(
    nursery: Any, tmp_path: Path, record_property: Callable[[str, object], None]
):
    a_night(nursery, tmp_path, seed=1, faults=10, steps=240, record=record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 7))
def test_a_run_through_a_night_of_thirty_faults_ends_in_the_bits_of_the_unbroken_one(
    seed: int, nursery: Any, tmp_path: Path, record_property: Callable[[str, object], None]
):
    a_night(nursery, tmp_path, seed=seed, faults=30, steps=600, record=record_property)
