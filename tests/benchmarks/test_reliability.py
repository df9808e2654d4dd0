"""The page of what a run survives names every test that does harm to one."""

import json
from pathlib import Path

import pytest

from benchmarks import reliability
from benchmarks.reliability import PAGE, ROWS, Row, page, run
from benchmarks.report import RESULTS

ROOT = Path(__file__).parents[2]


def test_every_reliability_test_is_on_the_page_and_every_file_of_it_is_there():
    named = {file for row in ROWS.values() for file in row.tests.split()}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests/reliability").glob("test_*.py")} <= named
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_the_page_is_what_its_figures_make():
    assert PAGE.read_text() == page(json.loads((RESULTS / "reliability.json").read_text()))


def test_a_row_counts_what_passed_and_failed_and_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "test_harm.py").write_text(
        "def test_one(record_property): record_property('difference', 3e-14)\ndef test_two(): assert False\n"
    )
    monkeypatch.setattr(reliability, "ROOT", tmp_path)
    found = run(Row("harm", "shown", "test_harm.py"), long=False)
    assert found.pop("seconds") > 0
    assert found == {"tests": 2, "passed": 1, "failure": 1, "measured": ["difference 3e-14"], "long": False}
    report = {"figures": {"night": found}, "machine": {"cores": 2, "cpu": "some"}}
    assert "| 1 of 2, 1 failed | difference 3e-14 |" in page(report)
