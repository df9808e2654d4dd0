"""The shared half of the benchmarks: what a report says, and that CPU time is what is measured."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_report() -> ModuleType:
    """benchmarks/ is no part of the package: where pytest is not run as a module of the root, no import finds it."""
    spec = importlib.util.spec_from_file_location("benchmarks_report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = load_report()


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def test_a_report_says_what_was_measured_on_what(results: Path) -> None:
    path = report.write_report("example", {"images per second": 3, "CPU / GPU": 0.1}, rounds=5)
    assert path == results / "example.json"
    written = json.loads(path.read_text())
    assert written["figures"] == {"images per second": 3, "CPU / GPU": 0.1}
    assert written["context"] == {"rounds": 5}
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["cpu"]
    assert written["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert "numpy" in written["versions"]
    assert list(results.iterdir()) == [path]


@pytest.mark.parametrize("context", [{"shards": "/data/me"}, {"from": [{"of": "read ~/x"}]}])
def test_a_report_never_tells_a_path_of_the_machine(results: Path, context: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="would tell where it was made"):
        report.write_report("example", {}, **context)
    assert not list(results.iterdir())


def test_a_checkout_with_changes_is_called_dirty_but_new_results_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(report, "ROOT", tmp_path)
    git("init")
    assert report.commit() is None  # nothing committed yet
    git("commit", "--allow-empty", "-m", "one")
    clean = report.commit()
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "x.json").write_text("{}")
    assert report.commit() == clean
    (tmp_path / "code.py").write_text("")
    assert report.commit() == f"{clean}-dirty"


def test_interleaved_rounds_take_turns_after_one_unmeasured_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(report, "_cpu_clock", lambda: float(next(clock)))
    medians = report.interleaved(3, {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a", "b"] * 4
    assert medians == {"a": 1.0, "b": 1.0}


def test_work_counts_and_waiting_does_not_and_children_are_included() -> None:
    def work() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    assert report.cpu_seconds(work) >= 0.05
    assert report.cpu_seconds(time.sleep, 0.2) < 0.1
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    assert report.cpu_seconds(subprocess.run, [sys.executable, "-c", busy]) >= 0.2
