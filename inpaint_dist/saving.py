"""Saving a run: a copy of what it holds is taken between two steps, and written by a thread while the steps go on.

The copy costs the loop the time that memory takes; the disk's time is the thread's. One copy is under way at most: the
next save waits for the one before. What fails is told by the loop, at its next look.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inpaint_dist import checkpoint
from inpaint_dist.config import TrainConfig
from inpaint_dist.errors import UserError
from inpaint_dist.run_folder import CHECKPOINTS, newest_in_health
from inpaint_dist.weights import CARD, GENERATOR, export_generator, write_card

Groups = Mapping[str, Mapping[str, Tensor]]


def copy_to_host(tensors: Groups) -> dict[str, dict[str, Tensor]]:
    """Copies of all tensors in the host's memory, which no later step changes; from a GPU by way of pinned memory."""

    def copied(tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor.detach().clone(memory_format=torch.contiguous_format)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor.detach(), non_blocking=True)

    made = {group: {name: copied(tensor) for name, tensor in named.items()} for group, named in tensors.items()}
    if any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
        torch.cuda.current_stream().synchronize()
    return made


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a run holds after a step."""

    step: int
    tensors: Groups
    state: Mapping[str, Any]
    """All of the run that is no tensor, as JSON has it; its scores and best ones too."""

    def apart(self) -> "Snapshot":
        """The same, in memory of its own."""
        return Snapshot(step=self.step, tensors=copy_to_host(self.tensors), state=deepcopy(dict(self.state)))

    def writes(self, config: TrainConfig, *, size: int, parameters: int) -> tuple[Callable[[], None], ...]:
        """What is to be written, in order: the checkpoint last, for a run that has its last one has all else too."""
        return (
            partial(self.write_weights, config, size=size, parameters=parameters),
            partial(self.write_checkpoint, config),
        )

    def write_weights(self, config: TrainConfig, *, size: int, parameters: int) -> None:
        """Write the averaged weights for use, and their card.

        Args:
            config: of the run.
            size: pixels of a side that it trains on.
            parameters: of the generator.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        folder, about = config.run_folder, {"step": self.step, "size": size, "scores": self.state["scores"]}
        export_generator(folder / GENERATOR, config.generator, self.tensors["ema"], recipe=config.recipe, **about)
        write_card(folder / CARD, recipe=config.recipe, parameters=parameters, **about)

    def write_checkpoint(self, config: TrainConfig) -> None:
        """Write the checkpoint, and remove those that are one too many.

        Between skipped steps the newest one from before them stays as well: the run may have to go back to it.

        Raises:
            UserError: the disk is full or cannot be written; the checkpoints before stay.
        """
        root, best = config.run_folder / CHECKPOINTS, self.state["best"]
        checkpoint.save(root, self.step, self.tensors, self.state)
        protected = [checkpoint.folder_name(int(best["step"]))] if best else []
        if self.state["trainer"].get("in_a_row", 0) and (healthy := newest_in_health(root)[0]):
            protected.append(healthy.name)
        checkpoint.prune(root, self.step, config.keep_checkpoints, protected)


class Writer:
    """A thread that does one thing after another, and keeps what failed until it is asked."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._under_way: list[Future[None]] = []

    def begin(self, *works: Callable[[], None]) -> None:
        """Do these in their turn, each whatever became of the others."""
        self._under_way += [self._thread.submit(work) for work in works]

    def failures(self, *, wait: bool) -> list[UserError | OSError]:
        """What failed since the last look; with `wait`, once all is done."""
        done = [future for future in self._under_way if wait or future.done()]
        self._under_way = [future for future in self._under_way if future not in done]
        met: list[UserError | OSError] = []
        for error in (future.exception() for future in done):
            if isinstance(error, UserError | OSError):
                met.append(error)
            elif error is not None:
                raise error
        return met
