import json
import math
import random

import pytest

from inpaint_dist.errors import UserError
from inpaint_dist.tracking.history import History, read, rows


def written(path, steps):
    history = History(path)
    for step in steps:
        history.append(step, {"g/loss": step / 7})
    return history


def test_each_report_is_one_valid_json_line_on_disk_at_once(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path)
    for count, step in enumerate((10, 20, 30), start=1):
        history.append(step, {"g/loss": 0.1 * step, "images": step * 8})
        lines = path.read_text().splitlines()
        assert len(lines) == count
        assert json.loads(lines[-1]) == {"step": step, "g/loss": 0.1 * step, "images": step * 8}


def test_values_that_are_not_finite_become_null_in_valid_json(tmp_path):
    path = tmp_path / "history.jsonl"
    History(path).append(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {"step": 1, "a": None, "b": None, "c": None, "d": 1.5}
    assert read(path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 1.5}]


def test_a_line_torn_at_any_byte_is_dropped_and_the_next_append_is_whole(tmp_path):
    path = tmp_path / "history.jsonl"
    written(path, (1, 2, 3))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert [row["step"] for row in read(path)] == [1, 2]
        history = History(path)
        assert history.last_step == 2
        history.append(3, {"g/loss": 0.5})
        assert [row["step"] for row in read(path)] == [1, 2, 3]


def test_a_last_line_of_rubbish_counts_as_torn_but_one_in_the_middle_is_named(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "g/lo{"st\n')
    assert read(path) == [{"step": 1}]
    History(path).append(2, {})
    assert read(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"history\.jsonl, line 2: .*delete that line"):
        read(path)
    with pytest.raises(UserError, match="line 2"):
        History(path).truncate_to(1)
    assert path.read_text().endswith('{"step": 3}\n')
    assert list(tmp_path.iterdir()) == [path]


def test_an_absent_and_an_empty_file_are_empty_histories(tmp_path):
    path = tmp_path / "run" / "history.jsonl"
    history = History(path)
    assert (read(path), history.last_step, history.truncate_to(5)) == ([], None, 0)
    path.write_bytes(b"")
    assert (read(path), History(path).last_step) == ([], None)


def test_values_of_the_same_step_join_its_line(tmp_path):
    path = tmp_path / "history.jsonl"
    history = written(path, (1, 2))
    history.append(2, {"val/psnr": 26.5})
    history.append(2, {"g/loss": 0.0})  # shorter than what it replaces
    history.append(3, {"g/loss": 1.0})
    joined = {"step": 2, "g/loss": 0.0, "val/psnr": 26.5}
    assert read(path) == [{"step": 1, "g/loss": 1 / 7}, joined, {"step": 3, "g/loss": 1.0}]


def test_a_step_before_the_last_is_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    history = written(path, (1, 5))
    with pytest.raises(ValueError, match="step 3 cannot follow step 5"):
        history.append(3, {})
    assert [row["step"] for row in read(path)] == [1, 5]


def test_cutting_back_keeps_the_lines_up_to_the_step_byte_for_byte(tmp_path):
    path = tmp_path / "history.jsonl"
    history = written(path, range(10, 101, 10))
    before = path.read_bytes().splitlines(keepends=True)
    assert history.truncate_to(45) == 6
    assert path.read_bytes() == b"".join(before[:4])
    assert history.truncate_to(45) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    assert history.truncate_to(0) == 4
    assert read(path) == []
    history.append(10, {})
    assert read(path) == [{"step": 10}]


def test_a_cut_that_fails_leaves_the_history_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    history = written(path, (1, 2, 3))
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("inpaint_dist.host.os.fsync", fail)
    with pytest.raises(UserError, match=r"history\.jsonl: cannot be written \(disk full\)"):
        history.truncate_to(1)
    assert path.read_bytes() == before


def test_a_run_killed_and_resumed_again_and_again_has_each_step_once(tmp_path):
    path = tmp_path / "history.jsonl"
    choice = random.Random(0)
    saved = 0
    while saved < 100:
        history = History(path)
        history.truncate_to(saved)
        dies_at = saved + 1 + int(choice.random() * 30)
        for step in range(saved + 1, min(dies_at, 100) + 1):
            history.append(step, {"g/loss": step / 7})
            if step % 10 == 0:
                saved = step
        if saved < 100:  # the kill tears the last line
            data = path.read_bytes()
            path.write_bytes(data[: len(data) - int(choice.random() * 8)] if dies_at > saved else data)
    assert list(rows(path)) == [{"step": step, "g/loss": step / 7} for step in range(1, 101)]
