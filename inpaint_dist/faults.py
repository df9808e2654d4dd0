"""Steps in which something is not finite: noted on the device, agreed by all ranks, undone, told to who looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inpaint_dist.batch import Batch
from inpaint_dist.errors import UserError
from inpaint_dist.launch import Launch

TERMS = ("batch", "d/loss", "d/gradient", "g/loss", "g/gradient")
"""What is checked to be finite before weights move, in the order of the fault tensor."""

NOTES = ("finite", "terms")
"""What a step leaves to be read."""

UNREAD = 64
"""Steps after which a GPU's notes are read although nobody looked; it waits for them."""


class NotFinite(UserError):
    """Losses or gradients stayed NaN or infinite, and going back to a checkpoint did not help."""

    on_every_rank = True


@dataclass(frozen=True)
class Fault:
    """A step that was skipped."""

    step: int
    term: str
    """Which of TERMS was the first that was not finite."""
    first_rank: int
    last_rank: int
    samples: dict[int, tuple[str, ...]]
    """By rank, the keys of the samples at fault where they are known, else of all samples of the ranks at fault."""

    def __str__(self) -> str:
        ranks = f"{self.first_rank} to {self.last_rank}" if self.last_rank > self.first_rank else str(self.first_rank)
        return f"{self.term} is not finite at step {self.step} on rank{'s' * (' ' in ranks)} {ranks}"


@dataclass(frozen=True)
class _Step:
    """One step's notes."""

    number: int
    keys: tuple[str, ...]
    finite: Tensor
    """By sample of this rank, whether it is finite: (batch)."""
    terms: Tensor
    """By term, where it was not finite: world - the first rank, and the last rank + 1; 0 where it was: (2, terms)."""


class Faults:
    """Follows what is not finite, in a step and over the steps.

    Within a step nobody waits to know: whether it is skipped is a tensor. On a CPU the notes are read after each step;
    on a GPU when somebody looks.

    Args:
        launch: whose ranks agree.
        limit: steps in a row that may be skipped. After one more nothing moves until `load_state`.
    """

    def __init__(self, launch: Launch, limit: int) -> None:
        self._launch, self._limit = launch, limit
        self._unread: list[_Step] = []
        self._found: list[tuple[int, str, int, int, tuple[str, ...]]] = []
        self.load_state({})

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.skipped = int(state.get("skipped", 0))
        self.in_a_row = min(int(state.get("in_a_row", 0)), self._limit)  # saved under a higher limit it would be stuck
        """Steps skipped since the run began, and up to the last step: as of the last reading."""
        self.stuck_at: int | None = None
        """The step with which more were skipped in a row than may be."""
        self._row = torch.tensor(self.in_a_row, device=self._launch.device)
        self._unread.clear()
        self.bad = self._row > self._limit
        """Whether the step is to be skipped, as far as is known: a tensor, on the device."""

    def state(self) -> dict[str, Any]:
        """What is counted, as JSON. On a GPU this waits for the last step."""
        self._read()
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    @property
    def are_known(self) -> bool:
        """Whether the notes of all steps have been read, so that looking costs nothing."""
        return not self._unread

    # ---------------------------------------------------------------- within a step

    def begin(self, batch: Batch) -> None:
        """Begin a step, whose batch is the first to be checked. Collective, as `note` is."""
        self._terms = torch.zeros(2, len(TERMS), device=self._launch.device)
        self.bad = self._row > self._limit
        sums = batch.image.flatten(1).sum(1) + batch.mask.flatten(1).sum(1)
        self._finite = torch.isfinite(sums)
        self.note("batch", [sums.sum()])

    def note(self, first_term: str, values: Sequence[Tensor]) -> None:
        """Check this rank's values of a term and of those that follow it; all ranks know of what one finds."""
        first, world, rank = TERMS.index(first_term), self._launch.world, self._launch.rank
        bad = (~torch.isfinite(torch.stack(list(values)))).float()
        bad = self._launch.largest(torch.stack([bad * (world - rank), bad * (rank + 1)]))
        self._terms[:, first : first + len(values)] += bad * ~self.bad  # what follows from the first fault is no news
        self.bad = self.bad | bad.any()

    def end(self) -> dict[str, Tensor]:
        """End a step; returns its notes. Whether it is to be undone, `bad` says."""
        self._row.add_(1).mul_(self.bad)  # in place, for a CUDA graph
        return dict(zip(NOTES, (self._finite, self._terms), strict=True))

    def file(self, step: int, keys: tuple[str, ...], notes: Mapping[str, Tensor]) -> None:
        """Keep the notes of a step until they are read."""
        self._unread.append(_Step(step, keys, **notes))
        if self._is_time():
            self._read()

    def _is_time(self) -> bool:
        return len(self._unread) >= UNREAD or self._launch.device.type == "cpu"

    # ---------------------------------------------------------------- over the steps

    def look(self) -> list[Fault]:
        """The faults since the last look, with the samples of all ranks. Collective; on a GPU it waits for them."""
        self._read()
        found, self._found = self._found, []
        if not found:  # on all ranks alike
            return []
        of_ranks: Any = self._launch.gather([samples for *_, samples in found])
        return [
            Fault(step, term, first, last, {rank: own[number] for rank, own in enumerate(of_ranks) if own[number]})
            for number, (step, term, first, last, _) in enumerate(found)
        ]

    def _read(self) -> None:
        steps, self._unread = self._unread, []
        if not steps:
            return
        for step, terms in zip(steps, torch.stack([step.terms for step in steps]).tolist(), strict=True):
            if self.stuck_at is not None:
                continue  # nothing moved any more
            at_fault = [(term, int(low), int(high)) for term, low, high in zip(TERMS, *terms, strict=True) if high]
            if not at_fault:
                self.in_a_row = 0
                continue
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            self._found.append(self._named(step, *at_fault[0]))
            if self.in_a_row > self._limit:
                self.stuck_at = step.number

    def _named(self, step: _Step, term: str, low: int, high: int) -> tuple[int, str, int, int, tuple[str, ...]]:
        first, last = self._launch.world - low, high - 1
        samples: tuple[str, ...] = ()
        if term == "batch":
            samples = tuple(key for key, good in zip(step.keys, step.finite.tolist(), strict=False) if not good)
        elif first <= self._launch.rank <= last:
            samples = step.keys
        return step.number, term, first, last, samples


class Undo:
    """Tensors as they were before a step, put back on the device where the step turns out bad: nobody waits to know."""

    def __init__(self) -> None:
        self._now: list[Tensor] = []
        self._before: list[Tensor] = []

    def keep(self, tensors: list[Tensor]) -> None:
        """Copy them, over the copies of the last step: tensors of the same shapes in the same order."""
        if not self._before:
            self._before = [torch.empty_like(tensor) for tensor in tensors]
        self._now = tensors
        with torch.no_grad():
            torch._foreach_copy_(self._before, tensors)  # pyright: ignore

    def put_back(self, bad: Tensor) -> None:
        """Give them their old values where `bad` is true."""
        if bad.device.type == "cpu" and not bool(bad):
            return
        with torch.no_grad():
            for now, before in zip(self._now, self._before, strict=True):
                torch.where(bad, before, now, out=now)


def lerp_unless(bad: Tensor, these: list[Tensor], those: list[Tensor], way: float | Tensor) -> None:
    """Move tensors, in place, that part of the way to others; where `bad` is true they stay: nobody waits to know."""
    if bad.device.type != "cpu":
        _lerp_by(torch.where(bad, 0.0, way), these, those)  # pyright: ignore[reportArgumentType, reportCallIssue]
    elif not bool(bad):
        torch._foreach_lerp_(these, those, way)  # pyright: ignore


def _lerp_by(way: Tensor, these: list[Tensor], those: list[Tensor]) -> None:
    """By a number that the host does not know. It makes differences first, at the price of memory for them."""
    differences: Any = torch._foreach_sub(those, these)  # pyright: ignore
    torch._foreach_mul_(differences, way)  # pyright: ignore
    torch._foreach_add_(these, differences)  # pyright: ignore
