"""A step's work on a GPU, recorded as a CUDA graph and started as one.

A step is some hundreds of kernels of microseconds each, and Python takes longer to start one than the GPU to run it.
"""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from inpaint_dist.batch import Batch

Work: TypeAlias = Callable[..., dict[str, Tensor]]
"""From a batch and switches (by name, bool) to named tensors; what it changes beside, it changes in place."""

EAGER = 3
"""Times that each kind of step runs as it is written before it is recorded: cuDNN and cuFFT choose their ways then."""


_SPARE = 1.1  # what fragments take


class Recorder:
    """Runs a work, from the fourth time on by a recording of it: the same kernels on the same memory.

    There is one recording for each combination of switches and shapes; they share their memory, so that what a run
    takes is that of the largest. What cannot be recorded goes on as it is written, and a warning says so.

    Args:
        work: does the same at each call with the same switches, and never waits for the device.
        clean_up: brings back what a work that ended half-way left behind, but for tensors.
    """

    def __init__(self, work: Work, clean_up: Callable[[], None]) -> None:
        self._work, self._clean_up = work, clean_up
        self._is_refused, self._memory = False, 0
        self.forget()

    def forget(self) -> None:
        """Forget all recordings: what the work changes lies elsewhere now."""
        self._recordings: dict[object, _Recording] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._seen: Counter[object] = Counter()

    def __call__(self, batch: Batch, **switches: bool) -> dict[str, Tensor]:
        """Do the work on a batch."""
        key = (*sorted(switches.items()), batch.image.shape, batch.image.stride(), batch.image.dtype)
        if key not in self._recordings:
            self._seen[key] += 1
            if self._is_refused:
                return self._work(batch, **switches)
            if self._seen[key] <= EAGER or not self._record(key, batch, switches):
                return self._measured(batch, switches)
        return self._recordings[key].replay(batch)

    def _measured(self, batch: Batch, switches: dict[str, bool]) -> dict[str, Tensor]:
        """Do the work as it is written, and note what memory it takes for a while."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        made = self._work(batch, **switches)
        self._memory = max(self._memory, torch.cuda.max_memory_allocated() - before)
        return made

    def _record(self, key: object, batch: Batch, switches: dict[str, bool]) -> bool:
        """Record a kind of step; whether that went well."""
        reason = _lacks(self._memory * (1 if self._recordings else 2)) or self._failed(key, batch, switches)
        if reason:
            self._is_refused = True
            warnings.warn(
                f"steps are not recorded as a CUDA graph, and slower for it: {reason}", RuntimeWarning, stacklevel=3
            )
        return not reason

    def _failed(self, key: object, batch: Batch, switches: dict[str, bool]) -> str:
        """Record; why that failed, if it did: an operation that waits for the host, or too little memory."""
        before = torch.cuda.current_stream()
        try:
            self._recordings[key] = _Recording(self._work, batch, switches, self._pool)
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # a recording that failed leaves its own
            with suppress(Exception):  # and an allocator that would give nothing back from here on
                torch._C._cuda_endAllocateToPool(before.device_index, self._pool)
                torch._C._cuda_releasePool(before.device_index, self._pool)
            self._clean_up()
            torch.cuda.empty_cache()
            return str(error.__context__ or error).partition("\n")[0]
        return ""


def _lacks(memory: int) -> str:
    """Whether so many bytes, a recording's own and those of steps that are not recorded beside it, are not free."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free >= memory * _SPARE:
        return ""
    return f"it takes {memory / 2**30:.1f} GiB more, and {free / 2**30:.1f} are free"


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage: to free another recording, or page-locked memory, would spoil this one."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Recording:
    """One recording, and the memory that it reads from and writes to."""

    def __init__(self, work: Work, batch: Batch, switches: dict[str, bool], pool: Any) -> None:
        luck = None if batch.luck is None else batch.luck.clone()
        self._batch = replace(batch, image=batch.image.clone(), mask=batch.mask.clone(), luck=luck)
        self.graph = torch.cuda.CUDAGraph()
        # Of this thread alone: others decode photos and wait for copies meanwhile.
        with _no_collection(), torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            made = work(self._batch, **switches)
            self._made = torch.cat([value.detach().reshape(-1).float() for value in made.values()])
        self._shapes = {name: value.shape for name, value in made.items()}

    def replay(self, batch: Batch) -> dict[str, Tensor]:
        self._batch.image.copy_(batch.image)
        self._batch.mask.copy_(batch.mask)
        if self._batch.luck is not None and batch.luck is not None:
            self._batch.luck.copy_(batch.luck)
        self.graph.replay()
        parts = self._made.clone().split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
