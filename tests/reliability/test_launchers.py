"""Whatever starts a run, it is the same run: python alone, torchrun and `accelerate launch`, at equal --threads.

Each is compared with ranks that are told who they are by the environment alone, as srun and mpirun do it.
`tests/test_launching.py` compares two processes of torchrun with two of `accelerate launch`.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inpaint_dist import checkpoint

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
LIMIT = 120
STEPS = ("--max-steps", "4", "--checkpoint-every", "2", "--eval-every", "2", "--sample-every", "1000")
CLOCK = {"images_per_second", "data_wait", "eta_seconds"}
"""What a history holds of the machine's haste."""
OF_ONE = {
    "python": [str(PROGRAMS / "python")],
    "torchrun": [str(PROGRAMS / "torchrun"), "--nproc-per-node", "1", "--master-port", "PORT"],
    "accelerate": [str(PROGRAMS / "accelerate"), "launch", "--num_processes", "1", "--cpu"],
}
OF_TWO = {
    "torchrun": [str(PROGRAMS / "torchrun"), "--nproc-per-node", "2", "--master-port", "PORT"],
    "accelerate": "accelerate launch --multi_gpu --num_processes 2 --main_process_port PORT".split(),
}


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def started(launcher: Sequence[str], shards: Path, run: Path, tiny: Sequence[str]) -> Path:
    """A run of four steps, started as a user would; its folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "SLURM_"))}
    environment |= {"PYTHONPATH": str(ROOT), "PATH": f"{PROGRAMS}{os.pathsep}{environment['PATH']}"}
    environment |= {"ACCELERATE_USE_CPU": "true"} if "--multi_gpu" in launcher else {}
    port = free_port()
    words = [port if word == "PORT" else word for word in launcher]
    flags = ["unet", "--shards", str(shards), "--output-dir", str(run), *tiny, "--cpu", "--global-batch-size", "4"]
    flags += ["--report-every", "1", "--workers", "0", *STEPS]
    done = subprocess.run(
        [*words, "-m", "inpaint_dist.train", *flags],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return run


def course(run: Path) -> list[dict[str, float]]:
    """A history without the clock's figures."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def state(run: Path) -> dict[str, torch.Tensor]:
    groups = checkpoint.load(run / "checkpoints" / checkpoint.folder_name(4)).tensors
    named = {f"{group}.{name}": tensor for group, some in groups.items() for name, tensor in some.items()}
    return named | {f"exported.{name}": t for name, t in load_file(run / "generator.safetensors").items()}


def assert_same_run(run: Path, other: Path) -> None:
    mine, theirs = course(run), course(other)
    assert [line["step"] for line in theirs] == [1, 2, 3, 4]
    assert all(len(line) > 15 and "g/loss" in line for line in theirs)
    assert mine == theirs
    found, expected = state(run), state(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def by_environment(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """World → a run whose ranks are told of each other by RANK and WORLD_SIZE alone."""
    runs = {world: tmp_path_factory.mktemp("plain") / "run" for world in (1, 2)}
    assert [warm.start(run, *STEPS, world=world).ended() for world, run in runs.items()] == [[0], [0, 0]]
    return runs


@pytest.mark.parametrize("launcher", [pytest.param(n, marks=[pytest.mark.slow] * (n == "torchrun")) for n in OF_ONE])
def test_one_process_is_the_same_run_by_any_launcher(
    launcher: str, by_environment: dict[int, Path], shards: Path, tiny: tuple[str, ...], tmp_path: Path
):
    run = started(OF_ONE[launcher], shards, tmp_path / "run", tiny)
    assert_same_run(run, by_environment[1])
    assert json.loads((run / "env.json").read_text())["processes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", OF_TWO)
def test_two_processes_are_the_same_run_by_any_launcher(
    launcher: str, by_environment: dict[int, Path], shards: Path, tiny: tuple[str, ...], tmp_path: Path
):
    run = started(OF_TWO[launcher], shards, tmp_path / "run", tiny)
    assert_same_run(run, by_environment[2])
    assert json.loads((run / "env.json").read_text())["processes"] == 2
    assert course(run) != course(by_environment[1])  # float32 sums in another order
