"""What a process decides for itself: precision and threads, whatever the launcher left in the environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inpaint_dist import launch
from inpaint_dist.errors import UsageError
from inpaint_dist.host import usable_cores
from inpaint_dist.launch import LONGEST_PAUSE, Vote, algorithms_of, resolve_precision

ROOT = Path(__file__).parents[1]
TOLD = "ACCELERATE_MIXED_PRECISION"
OPENED = """
import json, torch
from inpaint_dist.launch import LaunchConfig, open_launch

found = [torch.get_num_threads()]
for threads in (None, 1):
    with open_launch(LaunchConfig(cpu=True, threads=threads)) as launch:
        found += [torch.get_num_threads(), launch.threads]
print(json.dumps(found))
"""


def a_machine(monkeypatch: pytest.MonkeyPatch, *, told: str | None, has_bf16: bool) -> None:
    """What accelerate said (None: nothing), and whether the device, CPU or GPU, computes bf16 fast."""
    monkeypatch.delenv(TOLD, raising=False)
    if told is not None:
        monkeypatch.setenv(TOLD, told)
    monkeypatch.setattr(launch, "_cpu_has_amx", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)


@pytest.mark.parametrize(
    ("told", "on_cpu", "has_bf16", "expected"),
    [
        (None, True, False, "no"),
        (None, True, True, "bf16"),
        (None, False, False, "fp16"),
        (None, False, True, "bf16"),
        ("no", True, False, "no"),  # accelerate launch says no where it was asked nothing
        ("no", True, True, "bf16"),
        ("no", False, False, "fp16"),
        ("no", False, True, "bf16"),
        ("bf16", True, False, "bf16"),
        ("bf16", True, True, "bf16"),
        ("bf16", False, False, "bf16"),
        ("bf16", False, True, "bf16"),
        ("fp16", True, False, "no"),  # no CPU does that
        ("fp16", True, True, "bf16"),
        ("fp16", False, False, "fp16"),
        ("fp16", False, True, "fp16"),
    ],
)
def test_auto_is_what_accelerate_was_told_else_what_the_device_is_fast_at(
    told: str | None, on_cpu: bool, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
):
    a_machine(monkeypatch, told=told, has_bf16=has_bf16)
    assert resolve_precision("auto", on_cpu=on_cpu) == expected


@pytest.mark.parametrize("told", [None, "no", "bf16", "fp16"])
@pytest.mark.parametrize(("asked", "on_cpu"), [("no", True), ("no", False), ("bf16", True), ("fp16", False)])
def test_a_flag_counts_more_than_anything_else(
    told: str | None, asked: str, on_cpu: bool, monkeypatch: pytest.MonkeyPatch
):
    a_machine(monkeypatch, told=told, has_bf16=asked != "bf16")
    assert resolve_precision(asked, on_cpu=on_cpu) == asked


def test_half_precision_is_refused_on_a_cpu():
    with pytest.raises(UsageError, match=r"--mixed-precision fp16 needs a GPU: use --mixed-precision bf16 or no"):
        resolve_precision("fp16", on_cpu=True)


def test_bf16_that_a_gpu_only_emulates_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TOLD, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_precision("auto", on_cpu=False) == "fp16"


@pytest.mark.skipif(usable_cores() < 2, reason="on one core, all cores and one thread are the same")
class Alone(launch.Launch):
    """One of two ranks, whose word is what both say."""

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        return values


@pytest.mark.parametrize("start_up", [0.1, 60.0])
@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.3, 5.0])
def test_ranks_ask_each_other_soon_whatever_came_before(
    seconds: float, start_up: float, monkeypatch: pytest.MonkeyPatch
):
    """A run that went on at a late step once took its start-up for thousands of quick steps, and heard no signal."""
    now = 0.0
    monkeypatch.setattr(launch.time, "monotonic", lambda: now)
    vote = Vote(Alone(torch.device("cpu"), rank=0, world=2, precision="no", threads=1))
    now += start_up

    def steps_until_heard(cost: float) -> int:
        nonlocal now
        for step in range(1, 1000):
            now += cost
            if vote.is_asked(True):
                return step
        pytest.fail("never heard")

    assert steps_until_heard(seconds) == 1
    soon = max(1, min(LONGEST_PAUSE, 0.5 / seconds)) + 1
    for _ in range(3):
        assert steps_until_heard(seconds) <= soon
    assert steps_until_heard(100 * seconds) <= soon  # slower from one step to the next
    assert not any(vote.is_asked(False) for _ in range(100))


def test_a_launchers_omp_num_threads_does_not_leave_cores_idle_and_the_flag_counts():
    mine = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    mine |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", OPENED], env=mine, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cores = usable_cores()
    assert json.loads(done.stdout) == [1, cores, cores, 1, 1]


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("cuda", True)])
def test_deterministic_algorithms_are_a_gpus_matter_and_end_with_the_run(
    device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    before = torch.backends.cudnn.benchmark
    try:
        with algorithms_of(torch.device(device), deterministic=True):
            assert torch.are_deterministic_algorithms_enabled() is expected
            assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is expected
        assert not torch.are_deterministic_algorithms_enabled()
        with algorithms_of(torch.device(device), deterministic=False):
            assert not torch.are_deterministic_algorithms_enabled()
            assert torch.backends.cudnn.benchmark is (expected or before)
    finally:
        torch.backends.cudnn.benchmark = before
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
