"""Runs started as users start them: `accelerate launch`, torchrun, SLURM; and starts that must end at once."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from inpaint_dist import cli, launch, train
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.launch import LaunchConfig, open_launch

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
LIMIT = 120
"""Seconds that a start of two processes may take on a busy machine."""
TINY = ["--generator.channels", "4", "8", "--discriminator.channels", "4", "8", "--report-to", "none", "--threads", "1"]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine without a GPU")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(command: list[str], **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a program from the checkout, as a user would."""
    mine = a_users(**environment)
    return subprocess.run(command, env=mine, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)


def a_users(**environment: object) -> dict[str, str]:
    """The environment of a user of this Python's programs, who works in the checkout."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "SLURM_"))}
    mine["PYTHONPATH"] = str(ROOT)
    mine["PATH"] = f"{PROGRAMS}{os.pathsep}{mine['PATH']}"
    return mine | {name: str(value) for name, value in environment.items()}


def train_flags(shards: Path, out: Path, *more: str) -> list[str]:
    flags = ["unet", "--shards", str(shards), "--output-dir", str(out), *TINY, "--global-batch-size", "4"]
    return ["-m", "inpaint_dist.train", *flags, *more]


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def reports(run: Path) -> list[float]:
    """The steps of the training lines of a history."""
    return [line["step"] for line in lines(run) if "g/loss" in line]


@pytest.fixture(scope="module")
def two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on two ranks by `accelerate launch`."""
    run = tmp_path_factory.mktemp("two") / "run"
    launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    flags = train_flags(shards, run, "--max-steps", "4", "--report-every", "1", "--cpu")
    done = start([*launcher, *flags], ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "4 a step = 2 processes x 2" in done.stdout
    assert done.stdout.count("done: 4 steps") == 1
    return run


def test_a_run_of_two_ranks_is_one_run(two_ranks: Path):
    assert reports(two_ranks) == [1, 2, 3, 4]
    assert (two_ranks / "log.txt").read_text().count("done: 4 steps") == 1
    assert json.loads((two_ranks / "env.json").read_text())["processes"] == 2
    assert (two_ranks / "command.txt").read_text().count("\n") == 1


def test_torchrun_starts_the_same_run(two_ranks: Path, shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    launcher = ["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = start([*launcher, *train_flags(shards, run, "--max-steps", "4", "--report-every", "1", "--cpu")])
    assert done.returncode == 0, done.stderr
    expected, found = (load_file(folder / "generator.safetensors") for folder in (two_ranks, run))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert reports(run) == reports(two_ranks) == [1, 2, 3, 4]
    for mine, theirs in zip(lines(run), lines(two_ranks), strict=True):
        assert mine.keys() == theirs.keys()
        compared = mine.keys() - {"images_per_second", "data_wait", "eta_seconds"}
        assert {name: mine[name] for name in compared} == {name: theirs[name] for name in compared}


def test_a_run_of_two_ranks_goes_on_with_the_same_batches_on_one(
    two_ranks: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def on_one(name: str) -> tuple[Path, list[tuple[str, ...]]]:
        seen: list[tuple[str, ...]] = []
        step = train.Trainer.step
        monkeypatch.setattr(train.Trainer, "step", lambda s, b, **k: (seen.append(b.keys), step(s, b, **k))[1])
        flags = train_flags(shards, tmp_path / name, "--max-steps", "6", "--report-every", "1", "--cpu")
        train.main(flags[2:])
        monkeypatch.undo()
        return tmp_path / name, seen

    shutil.copytree(two_ranks, tmp_path / "resumed")
    (resumed, last), (straight, all_six) = on_one("resumed"), on_one("straight")
    assert reports(resumed) == [1, 2, 3, 4, 5, 6]
    assert last == all_six[4:]
    assert len(all_six) == 6
    histories = [
        {(line["step"], name): value for line in lines(run) for name, value in line.items()}
        for run in (resumed, straight)
    ]
    losses = [key for key in histories[1] if key[1] in ("g/loss", "d/loss", "g/reconstruction")]
    assert len(losses) == 18
    # float32 sums in another order: near, not equal.
    assert all(histories[0][key] == pytest.approx(histories[1][key], rel=1e-3) for key in losses)


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with the two commands of SLURM that the script calls, for two nodes on loopback."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    scripts = {
        "scontrol": "echo 127.0.0.1",
        # The second launcher waits for the first one's port: both would take themselves for its owner here.
        "srun": """
            [ "$1" = --kill-on-bad-exit=1 ] && shift
            SLURM_NODEID=0 "$@" & first=$!
            until (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; do kill -0 $first || exit 1; sleep 0.1; done
            SLURM_NODEID=1 "$@" & second=$!
            wait $first && wait $second
        """,
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{textwrap.dedent(text)}\n")
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    return folder


def test_the_slurm_script_starts_one_run_on_two_machines(slurm: Path, shards: Path, tmp_path: Path):
    run = tmp_path / "run"
    flags = train_flags(shards, run, "--max-steps", "2", "--cpu", "--no-sync-batchnorm", "--mixed-precision", "no")[2:]
    job = next(job for job in range(1, 20000) if is_free(20000 + job))
    job_environment = {"SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": 2, "SLURM_JOB_NODELIST": "a,b", "GPUS_PER_NODE": 1}
    done = start(
        ["bash", str(ROOT / "slurm.sbatch"), *flags],
        PATH=f"{slurm}{os.pathsep}{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        PORT=20000 + job,
        ACCELERATE_USE_CPU="true",
        **job_environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: 2 steps") == 1
    assert json.loads((run / "env.json").read_text())["processes"] == 2
    assert "note: batch norm sees each rank's images alone" in done.stdout


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_slurm_script_asks_for_one_task_a_machine():
    text = (ROOT / "slurm.sbatch").read_text()
    assert subprocess.run(["bash", "-n", str(ROOT / "slurm.sbatch")], check=False).returncode == 0
    assert "#SBATCH --ntasks-per-node=1 " in text


def test_accelerates_own_config_class_reads_the_config():
    config = load_config_from_file(str(ROOT / "accelerate_config.yaml"))
    assert config.distributed_type == DistributedType.MULTI_GPU
    assert config.mixed_precision == "bf16"
    assert config.num_processes >= 2
    assert config.use_cpu is False


@no_gpu
def test_several_processes_without_gpus_end_at_once_with_one_message_and_no_run_folder(shards: Path, tmp_path: Path):
    """Without the guard each would take itself for the only one, and all would write into one folder."""
    flags = train_flags(shards, tmp_path / "run")
    done = start(["accelerate", "launch", "--config_file", str(ROOT / "accelerate_config.yaml"), *flags])
    assert done.returncode != 0
    assert "exitcode  : 2" in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "2 processes were started, but no GPU is usable here" in said[0]
    assert "--num_processes 1" in said[0]
    assert sum(line.startswith("error:") for line in said) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ending", ["all raise", "one raises"])
def test_a_failed_run_of_two_ranks_ends_without_an_abort_and_tells_who_failed(ending: str, tmp_path: Path):
    """Left open, the group of processes aborts at exit in one of three runs."""
    script = tmp_path / "fail.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys
            import torch
            from inpaint_dist import cli
            from inpaint_dist.errors import UserError
            from inpaint_dist.launch import LaunchConfig, open_launch
            from inpaint_dist.faults import NotFinite

            def main(words):
                with open_launch(LaunchConfig(cpu=True)) as launch:
                    launch.wait()
                    if {ending == "all raise"}:
                        raise NotFinite("g/loss is not finite")
                    if launch.rank == 1:
                        raise UserError("x.tar: damaged")
                    launch.wait()

            sys.exit(cli.run(main))
        """)
    )
    done = start(["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port()), str(script)])
    assert done.returncode == 1
    assert not any(word in done.stderr for word in ("Aborted", "terminate called", "(SIGABRT)", "Segmentation"))
    if ending == "all raise":
        assert done.stderr.count("error: g/loss is not finite") == 1
    else:
        assert "error on rank 1: x.tar: damaged" in done.stderr


@pytest.fixture
def a_trainer_that_waits(tmp_path: Path) -> list[str]:
    """A script and its folder: it writes down its number where it would train, and how it ended."""
    script = tmp_path / "wait.py"
    script.write_text(
        textwrap.dedent("""
            import os, sys, time
            from pathlib import Path
            from inpaint_dist.launch import LaunchConfig, open_launch

            folder, launcher = Path(sys.argv[1]), os.getppid()
            with open_launch(LaunchConfig(cpu=True)):
                (folder / f"{os.getpid()}.pid").write_text("")
                try:
                    time.sleep(300)
                except KeyboardInterrupt:
                    while os.getppid() == launcher:  # which waits for a quarter of a second
                        time.sleep(0.01)
                    time.sleep(0.5)
                    (folder / "interrupted").write_text("")
        """)
    )
    return [str(script), str(tmp_path)]


def until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


linux_alone = pytest.mark.skipif(sys.platform != "linux", reason="no other system tells of a parent's end")


@linux_alone
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_a_launcher_that_is_killed_leaves_no_trainer_behind(
    launcher: str, number: int, a_trainer_that_waits: list[str], tmp_path: Path
):
    words = {
        "accelerate": ["accelerate", "launch", "--cpu"],
        "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port())],
    }[launcher]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*words, *a_trainer_that_waits], env=a_users(), cwd=ROOT, **quiet)
    trainers: list[int] = []
    try:
        until(lambda: len(list(tmp_path.glob("*.pid"))) == (2 if launcher == "torchrun" else 1), LIMIT)
        trainers = [int(path.stem) for path in tmp_path.glob("*.pid")]
        assert all(map(is_alive, trainers))
        process.send_signal(number)
        if number == signal.SIGTERM:  # torchrun then ends its processes itself, and waits for them
            process.wait(LIMIT)
        until(lambda: not any(map(is_alive, trainers)), 2)
    finally:
        for number in (process.pid, *trainers):
            if is_alive(number):
                os.kill(number, signal.SIGKILL)
        process.wait()


@linux_alone
def test_a_launcher_of_one_process_that_passes_no_signal_on_leaves_a_checkpoint_and_no_process(
    shards: Path, tmp_path: Path
):
    """The process learns of its launcher's end from the kernel."""
    run, never = tmp_path / "run", "1000000"
    flags = train_flags(shards, run, "--cpu", "--max-steps", never, "--checkpoint-every", never, "--eval-every", never)
    with (tmp_path / "said").open("w") as said:
        command = ["accelerate", "launch", "--cpu", *flags]
        process = subprocess.Popen(command, env=a_users(), cwd=ROOT, stdout=said, stderr=said)
    trainers: list[int] = []
    try:
        until(lambda: "step 10/" in (tmp_path / "said").read_text(), LIMIT)
        trainers = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(trainers) == 1
        process.terminate()
        process.wait(LIMIT)
        until(lambda: not any(map(is_alive, trainers)), 2)
    finally:
        for number in (process.pid, *trainers):
            if is_alive(number):
                os.kill(number, signal.SIGKILL)
        process.wait()
    (saved,) = re.findall(r"stopped: by the end of its launcher after step (\S+); ", (tmp_path / "said").read_text())
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{int(saved.replace(',', '')):07d}"]


@linux_alone
def test_after_ctrl_c_a_trainer_ends_in_order_although_its_launcher_has_gone(
    a_trainer_that_waits: list[str], tmp_path: Path
):
    command = ["accelerate", "launch", "--cpu", *a_trainer_that_waits]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=a_users(), cwd=ROOT, start_new_session=True, **quiet)
    try:
        until(lambda: list(tmp_path.glob("*.pid")), LIMIT)
        os.killpg(process.pid, signal.SIGINT)
        until(lambda: (tmp_path / "interrupted").exists(), 30)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@linux_alone
def test_a_trainer_whose_launcher_has_gone_before_it_began_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "signal_at_parents_end", lambda number: None)
    monkeypatch.setattr(launch, "STARTED_BY", os.getpid())
    with open_launch(LaunchConfig(cpu=True)):  # no launcher: whose child it is does not matter
        pass
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    with pytest.raises(UserError, match="has ended"), open_launch(LaunchConfig(cpu=True)):
        pass


def test_the_group_is_left_in_order_even_when_training_raises(monkeypatch: pytest.MonkeyPatch):
    ended: list[bool] = []
    monkeypatch.setattr(Accelerator, "end_training", lambda self: ended.append(True))
    with pytest.raises(ZeroDivisionError), open_launch(LaunchConfig(cpu=True)):
        raise ZeroDivisionError
    assert ended == [True]
    assert not dist.is_initialized()


def test_a_world_without_a_launcher_is_refused_instead_of_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="RANK is not set"), open_launch(LaunchConfig(cpu=True)):
        pass


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch):
    """What accelerate does where it finds no device of its own: N processes, each rank 0 of 1."""
    monkeypatch.setattr(launch, "_refuse_processes", lambda **_: monkeypatch.setenv("WORLD_SIZE", "2"))
    monkeypatch.setattr(launch, "Accelerator", AloneAccelerator)
    with (
        pytest.raises(UsageError, match="started 2 processes, but each of them runs alone"),
        open_launch(LaunchConfig(cpu=True)),
    ):
        pass
    assert AloneAccelerator.ended


class AloneAccelerator:
    num_processes, ended, device = 1, False, torch.device("cpu")

    def __init__(self, **_: object) -> None:
        pass

    def end_training(self) -> None:
        AloneAccelerator.ended = True


def test_more_processes_than_gpus_are_refused_by_their_numbers(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UsageError, match="8 processes were started on this machine, but 2 GPUs"),
        open_launch(LaunchConfig()),
    ):
        pass


@pytest.mark.parametrize(
    ("local_rank", "error", "said"),
    [
        (0, UsageError("--lr 9"), "error: --lr 9\n"),
        (0, UserError("x.tar: damaged"), "error on rank 4: x.tar: damaged\n"),
        (1, UserError("x.tar: damaged"), "error on rank 5: x.tar: damaged\n"),
        (1, UsageError("--lr 9"), "error on rank 5: --lr 9\n"),  # nobody ended it while it waited for the first
    ],
)
def test_the_first_process_of_a_machine_speaks_for_what_all_of_them_met(
    local_rank: int,
    error: UserError,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    waited: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    for name, value in {"WORLD_SIZE": "8", "RANK": str(4 + local_rank), "LOCAL_RANK": str(local_rank)}.items():
        monkeypatch.setenv(name, value)

    def main(words: object) -> int:
        raise error

    assert cli.run(main, []) == error.exit_code
    assert capsys.readouterr().err == said
    assert waited == ([cli.PATIENCE] if local_rank and error.on_every_rank else [])


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_a_flag_that_is_not_there_is_told_by_the_first_process_alone(
    local_rank: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as ended:
        train.parse(["unet", "--learning-rate-of-nothing", "1"])
    assert ended.value.code == 2
    said = "".join(capfd.readouterr())
    assert ("--learning-rate-of-nothing" in said) == (local_rank == "0")
