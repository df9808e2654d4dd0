"""Where a process runs: rank, device, precision, threads. What `accelerate launch` left open is decided here."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from inpaint_dist import STARTED_BY
from inpaint_dist.errors import Preempted, UsageError, UserError
from inpaint_dist.host import cores_a_process, signal_at_parents_end

Precision = Literal["bf16", "fp16", "no"]


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the processes of a run use their machine."""

    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = "auto"
    """auto: what accelerate was told, else bf16 where the device computes it fast (CUDA, CPUs with AMX), else fp16 on
    CUDA, else no (float32)."""
    cpu: bool = False
    """Run on the CPU even where there is a GPU."""
    threads: int | None = None
    """CPU threads of a process for torch; None: usable cores / processes on this machine. Bit-for-bit repeatability
    holds at equal threads."""
    deterministic: bool = False
    """On a GPU, use such algorithms alone as give the same bits each time, so that a run that goes on ends in those of
    one that nobody stopped; slower. On a CPU it does so anyway."""
    hang_timeout: float | None = None
    """Seconds without any progress after which the run names the rank that stopped, prints all stacks and fails. None:
    600, or ten times the longest pause so far, if that is more; 0: it waits for ever."""
    start_timeout: float = 1800.0
    """The same until the end of the first step, where it is more."""

    def __post_init__(self) -> None:
        for flag, seconds in (("--hang-timeout", self.hang_timeout), ("--start-timeout", self.start_timeout)):
            if seconds is not None and not seconds >= 0:
                raise UsageError(f"{flag} {seconds:g}: give 0 or more")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: give at least 1")


@dataclass(frozen=True)
class Launch:
    """This process among the others."""

    device: torch.device
    rank: int
    world: int
    precision: Precision
    threads: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which networks run."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks of a tensor that all ranks hold in one shape. Collective."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Largest over ranks, elementwise. Collective."""
        if self.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks. Collective."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def share(self, value: object) -> object:
        """Rank 0's value, on every rank. Collective."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: object) -> list[Any]:
        """Every rank's value, on every rank, by rank. Collective."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every rank is here. Collective."""
        if self.world > 1:
            dist.barrier(device_ids=[self.device.index or 0] if self.device.type == "cuda" else None)


VOTES_A_SECOND = 2.0
LONGEST_PAUSE = 50
"""Steps without a vote at most: they may become slower at any time."""


class Vote:
    """The ranks' common answer, at the same step on all of them, to whether one of them was asked to stop.

    Some times a second, not at every step; alone without any of it. On a GPU the question follows a step's work on the
    device, and the answer is read after the next step's has been queued, so that the device never waits for it.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch, self._pause, self._last = launch, 0, time.monotonic()
        self._since = 0  # steps since the last vote; a run's own count starts anywhere, and goes back
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    def is_asked(self, asked: bool) -> bool:
        """Whether a rank was asked to stop, as far as all ranks know by now. Collective: after every step."""
        if self._launch.world == 1:
            return asked
        self._since += 1
        if self._pending is None and self._since > self._pause:
            self._put(asked)
            if self._launch.device.type == "cuda":
                return False
        if self._pending is None:
            return False
        answer, copied = self._pending
        if copied is not None:
            copied.synchronize()
        self._pending = None
        anybody, seconds = answer.tolist()  # of the slowest, so the same on all
        self._pause = min(LONGEST_PAUSE, int(1 / (VOTES_A_SECOND * max(seconds, 1e-6))))
        return anybody > 0

    def _put(self, asked: bool) -> None:
        now, on_gpu = time.monotonic(), self._launch.device.type == "cuda"
        mine = torch.tensor([float(asked), (now - self._last) / self._since], pin_memory=on_gpu)
        self._last, self._since = now, 0
        whole = self._launch.largest(mine.to(self._launch.device, non_blocking=True))
        if not on_gpu:
            self._pending = whole, None
            return
        answer, copied = torch.empty(2, pin_memory=True), torch.cuda.Event()
        answer.copy_(whole, non_blocking=True)
        copied.record()
        self._pending = answer, copied


@contextmanager
def open_launch(config: LaunchConfig, launchers_end: int | None = None) -> Iterator[Launch]:
    """Join the other processes, choose device, precision and threads; leave in order at the end.

    Args:
        config: what was asked for.
        launchers_end: the signal that this process gets when its launcher ends; None: SIGKILL.

    Raises:
        UsageError: where the launcher started several processes that would not know of each other, or a precision is
            asked for that the device has not.
        UserError: the launcher has gone.
    """
    with _bound_to_launcher(launchers_end):
        yield from _open_launch(config)


def _open_launch(config: LaunchConfig) -> Iterator[Launch]:
    asked_for_cpu = config.cpu or _is_set("ACCELERATE_USE_CPU")
    on_cpu = asked_for_cpu or not torch.cuda.is_available()
    _refuse_processes(on_cpu=on_cpu, asked_for_cpu=asked_for_cpu)
    precision = resolve_precision(config.mixed_precision, on_cpu=on_cpu)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
    # NCCL's farewell waits for the other ranks, who may wait for this one: after a failure it would delay the message
    # of it until a timeout.
    may_leave = accelerator.device.type != "cuda" or accelerator.num_processes == 1
    try:
        _refuse_strangers(accelerator.num_processes)
        threads = config.threads or cores_a_process()
        torch.set_num_threads(threads)
        with algorithms_of(accelerator.device, deterministic=config.deterministic):
            yield Launch(accelerator.device, accelerator.process_index, accelerator.num_processes, precision, threads)
        accelerator.wait_for_everyone()
        may_leave = True
    except Preempted as end:
        if end.by_all:
            accelerator.wait_for_everyone()  # the first to have gone would have the launcher end the others
            may_leave = True
        raise
    finally:
        if may_leave:
            accelerator.end_training()  # without it one of three runs on several ranks aborts at exit


@contextmanager
def algorithms_of(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Let a GPU choose the fastest algorithms of those that are allowed; a CPU has no choice."""
    if device.type != "cuda":
        yield
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = not deterministic  # what is the fastest, is found by trying: each time another
    if not deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]


_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
"""What torchrun and `accelerate launch` set, each for every process that it starts; no user does."""


@contextmanager
def _bound_to_launcher(number: int | None) -> Iterator[None]:
    """Get a signal at the launcher's end, however it ends: a process left behind would go on writing into the folder.

    After a Ctrl-C, which all processes of a terminal get, this one ends by itself and has the time to say so. Linux
    alone has the means.

    Raises:
        UserError: the launcher has gone already.
    """
    if sys.platform != "linux" or not any(name in os.environ for name in _LAUNCHED):
        yield
        return
    signal_at_parents_end(signal.SIGKILL if number is None else number)
    if os.getppid() != STARTED_BY:
        raise UserError("the launcher that started this process has ended: this one ends too")
    ordinary = signal.getsignal(signal.SIGINT)
    if ordinary is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal_at_parents_end(0)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ordinary)


def resolve_precision(asked: str, *, on_cpu: bool) -> Precision:
    """Decide what `auto` means here; refuse what the device has not.

    `accelerate launch` without a config always sets ACCELERATE_MIXED_PRECISION=no, so that value says nothing.
    """
    if asked == "fp16" and on_cpu:
        raise UsageError("--mixed-precision fp16 needs a GPU: use --mixed-precision bf16 or no on a CPU")
    if asked in ("bf16", "fp16", "no"):
        return asked  # pyright: ignore[reportReturnType]
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told == "bf16" or (told == "fp16" and not on_cpu):
        return told
    if on_cpu:
        return "bf16" if _cpu_has_amx() else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _cpu_has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")


def _refuse_processes(*, on_cpu: bool, asked_for_cpu: bool) -> None:
    """Stop, before anybody waits for anybody, where this machine is not what the launcher took it for.

    Without a usable GPU, `accelerate launch --multi_gpu` and torchrun start their processes all the same.
    """
    started, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if started == 1:
        return
    if "RANK" not in os.environ:
        raise UsageError(
            f"WORLD_SIZE is {started}, but no launcher started this process (RANK is not set): "
            "use `accelerate launch` or torchrun, or unset WORLD_SIZE"
        )
    if on_cpu and not asked_for_cpu:
        raise UsageError(
            f"{started} processes were started, but no GPU is usable here: use `accelerate launch --num_processes 1` "
            "without --config_file, or add --cpu to run them on the CPU"
        )
    if not on_cpu and here > torch.cuda.device_count():
        raise UsageError(
            f"{here} processes were started on this machine, but {torch.cuda.device_count()} GPUs are usable: "
            "lower --num_processes, or add --cpu to run them on the CPU"
        )


def _refuse_strangers(processes: int) -> None:
    """Stop where the launcher started N processes and each believes that it is the only one."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        raise UsageError(
            f"the launcher started {started} processes, but each of them runs alone, and all would write into one "
            "folder: use `accelerate launch --num_processes 1`, or add --cpu for several processes on CPUs"
        )
