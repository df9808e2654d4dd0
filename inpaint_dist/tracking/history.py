"""A run's history: one JSON line a step. It is the truth that plots and wandb are views of."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from inpaint_dist.errors import UserError
from inpaint_dist.host import written_whole

Row = dict[str, float | int | None]
"""One line: `step` and the values reported at it; None where a value was not finite."""


class History:
    """Appends to a history file; steps only rise.

    A torn last line, left by a kill in the middle of a write, is cut when the file is opened.

    Args:
        path: the file; it is made by the first `append`, its folder at once.

    Raises:
        UserError: the file cannot be read or cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _usable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._load_last()

    @property
    def last_step(self) -> int | None:
        """The step of the last line, None in an empty history."""
        return None if self._last is None else _step(self._last)

    def append(self, step: int, values: Mapping[str, float | int]) -> None:
        """Write one line and flush it; values that are not finite are written as null.

        Values for the step of the last line (an evaluation, after the losses of the same step) join that line.

        Raises:
            ValueError: the step lies before the last line's.
            UserError: the disk is full or cannot be written; what a torn line held is made again on resume.
        """
        last = self.last_step
        if last is not None and step < last:
            raise ValueError(f"{self.path}: step {step} cannot follow step {last}; cut back with truncate_to first")
        row: Row = {"step": step}
        if self._last is not None and step == last:
            row = dict(self._last)
            self._end = self._last_start
        row.update({name: _finite(value) for name, value in values.items()})
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with _usable(self.path), self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(self._end)  # a line that is joined grows, so writing over its start leaves no rest of it behind
            file.write(line)
            file.truncate()
        self._last, self._last_start, self._end = row, self._end, self._end + len(line)

    def truncate_to(self, step: int) -> int:
        """Cut back to a checkpoint's step: lines after it are removed, all at once or not at all.

        Returns:
            The number of lines removed.

        Raises:
            UserError: a line in the middle of the file is damaged, or the disk cannot be written.
        """
        if self.last_step is None or self.last_step <= step:
            return 0
        removed = 0
        with _usable(self.path), written_whole(self.path) as part, part.open("wb") as file:
            for line, row in _parsed(self.path):
                if _step(row) <= step:
                    file.write(line)
                else:
                    removed += 1
        self._load_last()
        return removed

    def _load_last(self) -> None:
        """Find the last whole line, and cut what a kill left after it."""
        data = self.path.read_bytes() if self.path.exists() else b""
        self._last: Row | None = None
        self._last_start, self._end = 0, data.rfind(b"\n") + 1
        while self._end and self._last is None:
            self._last_start = data.rfind(b"\n", 0, self._end - 1) + 1
            self._last = _parse(data[self._last_start : self._end])
            if self._last is None:
                self._end = self._last_start
        if self._end < len(data):
            os.truncate(self.path, self._end)


def rows(path: Path) -> Iterator[Row]:
    """The lines of a history file, oldest first, without holding them all; none where there is no file.

    A torn last line is dropped.

    Raises:
        UserError: a line in the middle of the file is damaged.
    """
    if path.exists():
        for _, row in _parsed(path):
            yield row


def read(path: Path) -> list[Row]:
    """All lines of a history file, as `rows` gives them."""
    return list(rows(path))


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = "free space or mend the disk, and the same command goes on from the last checkpoint"
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {cure}") from error


def _parsed(path: Path) -> Iterator[tuple[bytes, Row]]:
    with path.open("rb") as file:
        damaged = 0
        for number, line in enumerate(file, start=1):
            if damaged:  # something follows it, so no kill tore it
                raise UserError(f"{path}, line {damaged}: not a line of a run's history; delete that line")
            row = _parse(line)
            if row is None:
                damaged = number
            else:
                yield line, row


def _parse(line: bytes) -> Row | None:
    """A line's values, None where it is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        _step(row)
    except (ValueError, TypeError, KeyError):
        return None
    return row


def _step(row: Row) -> int:
    step = row["step"]
    if not isinstance(step, int):
        raise TypeError(f"step {step!r} is not a whole number")
    return step


def _finite(value: float | int) -> float | int | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None
