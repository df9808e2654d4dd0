"""A step's work on a GPU, recorded as a CUDA graph and started as one.

A step is some hundreds of kernels of microseconds each, and Python takes longer to start one than the GPU to run it.
"""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from inpaint_dist.batch import Batch

Work: TypeAlias = Callable[..., dict[str, Tensor]]
"""From a batch and switches (by name, bool) to named tensors; what it changes beside, it changes in place."""

EAGER = 3
"""Times that each kind of step runs as it is written before it is recorded: cuDNN and cuFFT choose their ways then."""


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
        self._is_refused = False
        self.forget()

    def forget(self) -> None:
        """Forget all recordings: what the work changes lies elsewhere now."""
        self._recordings: dict[object, _Recording] = {}
        self._seen: Counter[object] = Counter()

    def __call__(self, batch: Batch, **switches: bool) -> dict[str, Tensor]:
        """Do the work on a batch."""
        key = (*sorted(switches.items()), batch.image.shape, batch.image.stride(), batch.image.dtype)
        if key not in self._recordings:
            self._seen[key] += 1
            if self._seen[key] <= EAGER or self._is_refused or not self._record(key, batch, switches):
                return self._work(batch, **switches)
        return self._recordings[key].replay(batch)

    def _record(self, key: object, batch: Batch, switches: dict[str, bool]) -> bool:
        before = torch.cuda.current_stream()
        try:
            self._recordings[key] = _Recording(self._work, batch, switches, self._recordings.values())
        except RuntimeError as error:  # an operation that waits for the host, or too little memory
            torch.cuda.set_stream(before)  # a recording that failed leaves its own
            self._clean_up()
            self._is_refused = True
            torch.cuda.empty_cache()
            reason = str(error.__context__ or error).partition("\n")[0]
            warnings.warn(
                f"steps are not recorded as a CUDA graph, and slower for it: {reason}", RuntimeWarning, stacklevel=2
            )
            return False
        return True


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

    def __init__(self, work: Work, batch: Batch, switches: dict[str, bool], others: Iterable["_Recording"]) -> None:
        luck = None if batch.luck is None else batch.luck.clone()
        self._batch = replace(batch, image=batch.image.clone(), mask=batch.mask.clone(), luck=luck)
        self.graph = torch.cuda.CUDAGraph()
        pool: Any = next((other.graph.pool() for other in others), None)
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
