"""What a run survives: runs the tests that do harm to it, and writes docs/reliability.md from what they measured.

    python -m benchmarks.reliability            the tests of every run of the suite
    python -m benchmarks.reliability --long     the long versions too: half an hour on two cores
    python -m benchmarks.reliability --only night hostile

Each row's result is kept in benchmarks/results/reliability.json; rows that were not run this time keep theirs.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, ROOT, write_report
from inpaint_dist.host import written_whole

PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Row:
    """One kind of harm, and the tests that do it."""

    harm: str
    shown: str
    tests: str
    chosen: str = ""
    """pytest's -k: which tests of the files."""


R = "tests/reliability/"
ROWS = {
    "save": Row(
        "kill -9 anywhere in a save; one bit flipped in any file of a checkpoint; any byte of a manifest changed",
        "one whole step is left to go on from, the damaged one is named and gone round",
        f"{R}test_checkpoints.py tests/test_checkpoint.py",
    ),
    "kills": Row(
        "kill -9 of a rank, again and again, under `supervise`; failures at one step; a supervisor that is killed",
        "the run ends in the bits of the unbroken one; what cannot succeed is given up; nobody stays behind",
        f"{R}test_supervise.py",
    ),
    "resume": Row(
        "stops at any step, other workers, batches that straddle epochs; folders of another run",
        "bit for bit the unbroken run; a difference is refused by its name",
        f"{R}test_resume.py",
    ),
    "order": Row(
        "any number of ranks, workers, shards, prime sizes, windows; 100,000 samples, 10,000 steps",
        "each sample once an epoch, the same global batches; memory and open files stay as they are",
        "tests/data/test_promises.py",
    ),
    "elastic": Row(
        "a run that goes on with 1, 2, 4, 2 and 1 processes",
        "the same global batches, and in float64 the losses and weights of one process within 1e-9; "
        "with each rank's own batch norm it differs and says so",
        f"{R}test_elastic.py",
    ),
    "gradients": Row(
        "every loss with no norm, batch norm and spectral norm, every generator, on two ranks and in two parts",
        "the gradients of one process, within 1e-12 of their length in float64 (parts: where nothing looks at the "
        "batch). Not of the minibatch deviation of `mi-gan`'s discriminator, which is a rank's own",
        "tests/test_distributed.py",
        "every_loss or parts_give",
    ),
    "numbers": Row(
        "NaN and infinity in samples, losses, gradients and weights, on any rank, in fp16 too",
        "the step leaves no trace, is counted and named; too many take the run back, and on with other photos",
        f"{R}test_numbers.py",
    ),
    "signals": Row(
        "SIGTERM, SIGINT, SIGUSR1 to the launcher or any rank, in steps, saves, evaluations and before the first step",
        "a checkpoint of the step under way, exit code 75, the same command ends in the same bits",
        f"{R}test_preemption.py",
    ),
    "hangs": Row(
        "a rank that sleeps, is stopped, or waits for ever",
        "it is named with its phase and line, and all end",
        f"{R}test_hangs.py",
    ),
    "storage": Row(
        "a disk that is full, read-only or gone for a while; a run folder that is removed",
        "training goes on, and ends as if nothing had been",
        f"{R}test_storage.py",
    ),
    "data": Row(
        "damaged, missing, foreign and hostile shards, photos, masks and indices",
        "refused by name before the first step, or counted and replaced: never silent",
        f"{R}test_data.py",
    ),
    "wandb": Row(
        "wandb that is missing, has no key, a closed port, a server that never answers, or falls silent in the middle",
        "8 seconds at the start or 10 at the end, no step; the history is whole, and the command that sends what was "
        "not taken is named",
        f"{R}test_wandb.py tests/tracking/test_tracker.py tests/tracking/test_wandb_mode.py",
        "hang or wandb or mode or login or netrc or server or environment",
    ),
    "hostile": Row(
        "weights, checkpoints and configs made to do harm: pickles, links, paths that lead out, headers and networks "
        "of terabytes, nonsense under right checksums, JSON too deep",
        "one error each, in under 5 CPU-seconds and 300 MB; no code is run, nothing outside is read or written",
        f"{R}test_hostile.py",
    ),
    "launchers": Row(
        "python alone, torchrun, `accelerate launch`, ranks told by their environment; one and two processes",
        "bitwise the same history, checkpoint and weights at equal --threads",
        f"{R}test_launchers.py tests/test_launching.py",
        "same_run",
    ),
    "night": Row(
        "a night of faults drawn by a seed on two ranks: kill -9, SIGTERM, stops, a full disk, checkpoints flipped and "
        "removed, samples that are not finite",
        "the bits of the unbroken run, and each fault in log and history",
        f"{R}test_night.py",
    ),
}


def run(row: Row, *, long: bool) -> dict[str, Any]:
    """Run a row's tests; how many passed, what they took, and what they measured."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
        command += [f"--junit-xml={report}"]  # the family that properties may be recorded in
        command += ["-m", "slow or not slow"] if long else []
        command += ["-k", row.chosen] if row.chosen else []
        started = time.monotonic()
        subprocess.run([*command, *row.tests.split()], cwd=ROOT, check=False)
        seconds = round(time.monotonic() - started, 1)
        cases = list(ElementTree.parse(report).iter("testcase"))
    bad = ("failure", "error", "skipped")
    ends = Counter(next((child.tag for child in case if child.tag in bad), "passed") for case in cases)
    measured = [f"{item.get('name')} {item.get('value')}" for case in cases for item in case.iter("property")]
    return {"tests": len(cases), **ends, "seconds": seconds, "measured": measured, "long": long}


def page(report: Mapping[str, Any]) -> str:
    """The page that a report makes."""
    figures = report["figures"]
    lines = [
        "# What a run survives",
        "",
        "Written by `python -m benchmarks.reliability` from `benchmarks/results/reliability.json`; change it there.",
        f"Measured on {report['machine']['cores']} cores of {report['machine']['cpu']}, with other work beside it.",
        "",
        "| What is done to it | What is shown | Tests | Passed | Measured |",
        "|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        files = "<br>".join(f"`{file}`" for file in row.tests.split())
        found = figures.get(name)
        if found is None:
            passed, measured = "not run for this page", ""
        else:
            failed = found["tests"] - found.get("passed", 0) - found.get("skipped", 0)
            passed = f"{found.get('passed', 0)} of {found['tests']}" + (f", {failed} failed" if failed else "")
            passed += f" ({found['skipped']} skipped)" if found.get("skipped") else ""
            measured = re.sub(r"\d\.\d+e-\d+", lambda small: f"{float(small[0]):.1e}", "; ".join(found["measured"]))
        lines.append(f"| {row.harm} | {row.shown} | {files} | {passed} | {measured} |")
    lines += [
        "",
        "Not covered: several GPUs and NCCL (what one GPU does is shown by `pytest -m gpu`, where there is one),",
        "several machines, network file systems, a sparse file of terabytes in a checkpoint's place, power that fails",
        "under the disk's own cache, a lone rank that somebody stopped (SIGSTOP) before its launcher was killed with",
        "-9: the signal of that death waits too, unless `supervise` is there to kill it.",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the rows asked for, and write report and page; 1 where a test failed."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=about)
    parser.add_argument("--long", action="store_true", help="the long versions too")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[*ROWS], help="these rows alone")
    asked = parser.parse_args(argv)
    path = RESULTS / "reliability.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    for name in asked.only:
        figures[name] = run(ROWS[name], long=asked.long)
        write_report("reliability", {name: figures[name] for name in ROWS if name in figures})
        with written_whole(PAGE) as part:
            part.write_text(page(json.loads(path.read_text())))
    return int(any("failure" in figures[name] or "error" in figures[name] for name in asked.only))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
