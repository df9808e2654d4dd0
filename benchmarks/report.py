"""What every benchmark shares: CPU time in interleaved rounds, and the JSON that says what was measured, on what.

figures = interleaved(5, {"ours": draw_ours, "theirs": draw_theirs})
write_report("masks", figures, rounds=5)
"""

import json
import platform
import re
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inpaint_dist.host import usable_cores, versions, written_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ABSOLUTE_PATH = re.compile(r"(^|[\s=:'\"])[/~]\w*/")

PACKAGES = (
    "torch",
    "accelerate",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "simplejpeg",
    "webdataset",
    "torchmetrics",
)


def cpu_seconds(function: Callable[..., object], *args: Any) -> float:
    """CPU seconds of one call: all threads of this process, and child processes that ended and were waited for."""
    start = _cpu_clock()
    function(*args)
    return _cpu_clock() - start


def interleaved(rounds: int, functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU seconds of each function, over rounds in which all take their turn.

    Turns share whatever else the machine does, so that their ratios hold where the seconds do not. Each function runs
    once before, unmeasured.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(cpu_seconds(function))
    return {name: statistics.median(values) for name, values in seconds.items()}


def write_report(name: str, figures: Mapping[str, Any], **context: Any) -> Path:
    """Write benchmarks/results/NAME.json: figures and context, machine, versions, commit, date.

    Args:
        name: the benchmark's, and the file's.
        figures: what was measured, JSON values by names that hold the unit.
        context: how it was measured: rounds, sizes, counts.

    Raises:
        ValueError: the report would tell a path of this machine.
    """
    report = {
        "name": name,
        "figures": figures,
        "context": context,
        "machine": machine(),
        "versions": versions(PACKAGES),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    for text in _strings(report):
        if ABSOLUTE_PATH.search(text):
            raise ValueError(f"The report {name} would tell where it was made: {text!r}")
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, GPU name or null."""
    return {"cpu": _cpu_model(), "cores": usable_cores(), "gpu": _gpu_name()}


def commit() -> str | None:
    """The commit of this checkout, with -dirty where files other than results differ from it; None outside git."""
    try:
        head = _output("git", "rev-parse", "HEAD")
        changes = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changes else head


def _output(*words: str) -> str:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _cpu_clock() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{len(names)} x {names[0].strip()}" if len(names) > 1 else names[0].strip() if names else None


def _strings(value: Any) -> list[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in _strings(part)]
    return []
