import inspect
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from inpaint_dist.errors import UsageError
from inpaint_dist.tracking import plots, tracker
from inpaint_dist.tracking.history import read
from inpaint_dist.tracking.tracker import NullTracker, Tracker, TrackingConfig

ROOT = Path(__file__).parents[2]
LOSSES = {"g/loss": 0.5, "d/loss": 0.2, "d/real": 0.7, "d/fake": 0.3}


def opened(folder, resume_step=0, report_to="none", **more):
    settings = {"run_name": None, "total_steps": 100, "resume_step": resume_step, **more}
    return Tracker(folder, {"seed": 0}, report_to=report_to, **settings)


def test_reports_go_to_the_history_the_screen_and_the_log(tmp_path, capsys):
    run = opened(tmp_path / "run")
    run.message("3 photos left out")
    run.report(10, LOSSES)
    run.close("finished")
    assert read(tmp_path / "run" / "history.jsonl") == [{"step": 10, **LOSSES}]
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["3 photos left out", "step 10/100 10.0% | G 0.500 D 0.200 | real 0.70 fake 0.30"]
    logged = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in logged] == lines  # after the date and the time
    assert (tmp_path / "run" / "plots" / "losses.png").exists()


def test_a_resumed_run_goes_on_from_its_checkpoint_with_each_step_once(tmp_path, capsys):
    first = opened(tmp_path)
    for step in (10, 20, 30):
        first.report(step, LOSSES)
    second = opened(tmp_path, resume_step=20)
    assert "history: cut back to step 20 (lines removed: 1)" in capsys.readouterr().out
    for step in (30, 40):
        second.report(step, LOSSES)
    second.close("finished")
    assert [row["step"] for row in read(tmp_path / "history.jsonl")] == [10, 20, 30, 40]


def test_the_null_tracker_has_every_public_method_of_the_tracker_with_its_signature(tmp_path, monkeypatch):
    def public(owner):
        return {
            name: inspect.signature(member)
            for name, member in inspect.getmembers(owner, inspect.isfunction)
            if not name.startswith("_")
        }

    assert {"report", "images", "samples", "plot", "message", "close"} <= set(public(Tracker))
    assert public(NullTracker) == public(Tracker)
    monkeypatch.chdir(tmp_path)
    null = NullTracker()
    null.report(1, LOSSES)
    null.samples(1, [])
    null.images(1, "samples", Path("absent.png"))
    null.plot()
    null.message("text")
    null.close("finished")
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_fails_is_one_warning_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(plots, "draw_losses", fail)
    monkeypatch.setattr(plots, "draw_grid", fail)
    run = opened(tmp_path)
    for step in (1, 2, 3):
        run.report(step, LOSSES)
        run.plot(force=True)
    run.samples(3, [])
    run.close("finished")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings[0] == "warning: plots/losses.png was not drawn: RuntimeError: no fonts"
    assert [("step-0000003.png" in line) for line in warnings] == [False, True]


def test_a_log_that_cannot_be_written_is_one_warning_and_the_run_goes_on(tmp_path, capsys):
    run = opened(tmp_path)
    (tmp_path / "log.txt").mkdir()
    for step in (1, 2):
        run.report(step, LOSSES)
    run.close("finished")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["warning:", "step", "step"]
    assert "log.txt cannot be written" in lines[0]
    assert len(read(tmp_path / "history.jsonl")) == 2


def test_drawing_takes_at_most_a_fiftieth_of_the_time_and_only_for_something_new(tmp_path, monkeypatch):
    clock, drawn = [1000.0], []
    monkeypatch.setattr(tracker, "time", types.SimpleNamespace(monotonic=lambda: clock[0], strftime=lambda _: "now"))

    def draw(history, path, title):
        drawn.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(plots, "draw_losses", draw)
    run = opened(tmp_path)
    run.plot()
    assert drawn == []
    for step in range(1, 1001):
        clock[0] += 0.1
        run.report(step, LOSSES)
        run.plot()
    assert 3 <= len(drawn) <= 0.02 * (clock[0] - 1000) / 0.5 + 1
    count = len(drawn)
    run.plot(force=True)
    run.plot(force=True)
    assert len(drawn) == count + 1
    run.close("finished")
    assert len(drawn) == count + 1


def test_sample_grids_are_named_by_their_step(tmp_path):
    run = opened(tmp_path)
    run.samples(1000, [("photo", np.zeros((2, 16, 16, 3), np.uint8))])
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-0001000.png"]


def test_configs_are_checked_and_their_intervals_suit_short_and_long_runs():
    assert [TrackingConfig().sample_interval(n) for n in (1, 20, 21, 315, 35_000, 1_000_000)] == [
        1,
        1,
        2,
        20,
        2000,
        50_000,
    ]
    assert TrackingConfig(sample_every=7).sample_interval(35_000) == 7
    for wrong in ({"report_every": 0}, {"sample_every": 0}):
        with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')} 0: must be 1 or more"):
            TrackingConfig(**wrong)


def test_importing_the_tracker_imports_nothing_heavy():
    code = (
        "import inpaint_dist.tracking.tracker, sys\n"
        "print(sorted({'wandb', 'matplotlib', 'torch', 'cv2', 'PIL'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- wandb. Loopback only: offline files, and servers that are not there.


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    """An environment in which nothing says anything about wandb."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(home)
    yield
    if isinstance(sys.modules.get("wandb"), types.ModuleType):
        sys.modules["wandb"].teardown()


def end(run, status="finished"):
    """Close a run and wait for wandb's service: `finish` may return a moment before its file is written."""
    run.close(status)
    sys.modules["wandb"].teardown()


def offline_records(folder):
    """The records of a folder's one offline file.

    It is LevelDB's log: blocks of 32 KiB after a header of 7 bytes, chunks of (crc 4, length 2, kind 1, data), kind 1
    being a whole record and 2, 3, 4 the first, a middle and the last part of one; each record is a protobuf message.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        chunk = data[place + 7 : place + 7 + length]
        parts = chunk if kind in (1, 2) else parts + chunk
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def offline_rows(folder):
    """The history rows in a folder's offline file, as wandb would sync them: its own keys left out."""
    import json

    for record in offline_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            row = {key: value for key, value in items.items() if not key.startswith("_")}
            yield record.history.step.num, row


def same_value(ours, theirs):
    return theirs != theirs if ours is None else ours == theirs  # wandb keeps NaN where JSON has null


def assert_same_rows(history, theirs):
    assert [step for step, _ in theirs] == [row["step"] for row in history]
    for row, (step, values) in zip(history, theirs, strict=True):
        assert values.pop("iteration") == step
        assert values.keys() == row.keys() - {"step"}
        assert all(same_value(row[key], value) for key, value in values.items())


def test_wandb_s_offline_file_says_what_the_history_says(tmp_path, no_login, capsys):
    run = opened(tmp_path / "run", report_to="wandb", total_steps=2000)
    for step in range(10, 2001, 10):  # enough to fill more than one block of the file
        run.report(step, {**LOSSES, "g/loss": 1 / step, "d/r1": float("nan") if step % 500 == 0 else step * 1e-9})
        if step % 1000 == 0:
            run.report(step, {"val/psnr": 20 + step / 1000})
    end(run)
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert next(folder.glob("*.wandb")).stat().st_size > 32768
    history = read(tmp_path / "run" / "history.jsonl")
    assert len(history) == 200
    assert_same_rows(history, list(offline_rows(folder)))
    kinds = [record.WhichOneof("record_type") for record in offline_records(folder)]
    assert (kinds[0], kinds[-1]) == ("header", "exit")
    metrics = [record.metric for record in offline_records(folder) if record.WhichOneof("record_type") == "metric"]
    assert ("*", "iteration") in [(metric.glob_name, metric.step_metric) for metric in metrics]
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("wandb: offline (not logged in); upload later with: wandb sync ")


def test_wandb_is_given_the_settings_and_nothing_of_the_machine_s_code_or_environment(tmp_path, no_login, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "do-not-send-me")
    monkeypatch.chdir(ROOT)  # where wandb would find a git repository
    run = opened(tmp_path / "run", report_to="wandb", run_name="first try")
    run.report(1, LOSSES)
    end(run, "failed")
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    records = list(offline_records(folder))
    start = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert start.display_name == "first try"
    assert {item.key: item.value_json for item in start.config.update if item.key != "_wandb"} == {"seed": "0"}
    assert not start.HasField("git")
    assert next(record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit") == 1
    assert {record.WhichOneof("record_type") for record in records}.isdisjoint({"environment", "output", "output_raw"})
    kept = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "logs"]
    assert [path.suffix for path in kept] == [".wandb"]
    for path in folder.rglob("*"):
        assert path.is_dir() or b"do-not-send-me" not in path.read_bytes()


def test_a_resumed_run_keeps_its_wandb_id_and_goes_on_from_its_step(tmp_path, no_login):
    for resume_step, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        run = opened(tmp_path / "run", resume_step=resume_step, report_to="wandb")
        for step in steps:
            run.report(step, {**LOSSES, "g/loss": 1 / step})
        end(run, "interrupted" if resume_step == 0 else "finished")
    kept = (tmp_path / "run" / "wandb" / "id.txt").read_text().strip()
    found, ids = {}, []
    for file in (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"):
        records = list(offline_records(file.parent))
        ids += [record.run.run_id for record in records if record.WhichOneof("record_type") == "run"]
        found[tuple(step for step, _ in offline_rows(file.parent))] = dict(offline_rows(file.parent))
    assert ids == [kept, kept]
    assert set(found) == {(10, 20, 30), (30, 40)}
    assert found[30, 40][30] == found[10, 20, 30][30]
    merged = sorted({**found[10, 20, 30], **found[30, 40]}.items())
    assert_same_rows(read(tmp_path / "run" / "history.jsonl"), merged)


def test_sample_grids_reach_wandb(tmp_path, no_login):
    run = opened(tmp_path / "run", report_to="wandb")
    run.samples(5, [("photo", np.zeros((1, 16, 16, 3), np.uint8))])
    run.report(10, LOSSES)
    end(run)
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    rows = dict(offline_rows(folder))
    assert sorted(rows) == [5, 10]
    assert rows[5]["iteration"] == 5
    assert any(path.suffix == ".png" for path in (folder / "files" / "media").rglob("*"))


def test_a_wandb_that_breaks_later_is_one_warning_and_training_goes_on(tmp_path, no_login, capsys):
    run = opened(tmp_path / "run", report_to="wandb")

    class Broken:
        def __getattr__(self, name):
            raise BrokenPipeError("the service went away\nlong trace")

    healthy, run._wandb._run = run._wandb._run, Broken()
    for step in (1, 2, 3):
        run.report(step, LOSSES)
    run.images(3, "samples", tmp_path / "absent.png")
    run.close("finished")
    healthy.finish()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings == [
        "warning: wandb: BrokenPipeError: the service went away (said once; history.jsonl has everything)"
    ]
    assert len(read(tmp_path / "run" / "history.jsonl")) == 3


def test_without_wandb_the_run_goes_on_and_says_so(tmp_path, no_login, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = opened(tmp_path / "run", report_to="wandb")
    run.report(1, LOSSES)
    run.close("finished")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wandb: cannot be imported (ModuleNotFoundError")
    assert len(lines) == 2
    assert len(read(tmp_path / "run" / "history.jsonl")) == 1


def test_wandb_switched_off_is_not_even_imported(tmp_path, no_login, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would be told
    opened(tmp_path / "run", report_to="wandb").close("finished")
    assert capsys.readouterr().out == "wandb: off (WANDB_MODE=disabled)\n"


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


RUN = """
import sys
from pathlib import Path
from inpaint_dist.tracking import tracker
tracker.INIT_TIMEOUT = 2.0
folder = Path(sys.argv[1])
run = tracker.Tracker(folder, {}, report_to="wandb", run_name=None, total_steps=10, resume_step=0)
run.report(10, {"g/loss": 0.5})
run.close("finished")
"""


def test_a_server_that_cannot_be_reached_means_offline(tmp_path, no_login):
    environ = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{closed_port()}", "WANDB_API_KEY": "a" * 40}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(tmp_path / "run")],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("wandb: cannot start online: CommError")
    assert lines[1].startswith("wandb: offline (CommError")
    assert lines[2].startswith("step 10/10")
    assert "Traceback" not in done.stderr
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert_same_rows(read(tmp_path / "run" / "history.jsonl"), list(offline_rows(folder)))


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a POSIX thing")
def test_online_without_a_login_asks_nothing_even_on_a_terminal(tmp_path, no_login):
    import pty

    ours, theirs = pty.openpty()
    environ = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{closed_port()}", "WANDB_MODE": "online"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "run")],
        cwd=ROOT,
        env={**environ, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        assert process.wait(timeout=60) == 0  # a question would wait for ever
        said = os.read(ours, 65536).decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "wandb: offline (" in said
    assert "Enter your choice" not in said
    assert "API key from" not in said
