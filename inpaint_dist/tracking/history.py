"""A run's history: one JSON line a step. It is the truth that plots and wandb are views of."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from inpaint_dist.errors import UserError
from inpaint_dist.host import parse_json, written_whole

Row = dict[str, float | int | None]
"""One line: `step` and the values reported at it; None where a value was not finite."""


class NotWritten(UserError):
    """The history cannot be written, for now."""


class History:
    """Appends to a history file; steps only rise.

    It holds all lines in memory too (some 600 bytes each): what cannot be written is written with the next line that
    can, and a file that somebody removed is made anew. A torn last line, left by a kill in the middle of a write, is
    cut when the file is opened.

    Args:
        path: the file; it is made by the first `append`, its folder at once.

    Raises:
        UserError: the file cannot be read or cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _usable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = bytearray(path.read_bytes() if path.exists() else b"")
            self._size = len(self._lines)
            """Bytes of the file, as far as it is known."""
            self._find_last()
            if len(self._lines) < self._size:
                os.truncate(path, len(self._lines))
        self._size = self._good = len(self._lines)
        """Bytes at its start that are what they should be."""

    @property
    def last_step(self) -> int | None:
        """The step of the last line, None in an empty history."""
        return None if self._last is None else _step(self._last)

    def append(self, step: int, values: Mapping[str, float | int]) -> None:
        """Add one line and write it; values that are not finite are written as null.

        Values for the step of the last line (an evaluation, after the losses of the same step) join that line.

        Raises:
            ValueError: the step lies before the last line's.
            UserError: the disk is full or cannot be written; the line is kept for the next `append` or `flush`.
        """
        last = self.last_step
        if last is not None and step < last:
            raise ValueError(f"{self.path}: step {step} cannot follow step {last}; cut back with truncate_to first")
        row: Row = {"step": step}
        if self._last is not None and step == last:
            row = dict(self._last)
            del self._lines[self._last_start :]
            self._good = min(self._good, self._last_start)
        row.update({name: _finite(value) for name, value in values.items()})
        self._last, self._last_start = row, len(self._lines)
        self._lines += json.dumps(row, allow_nan=False).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        if self._good == len(self._lines) and self._is_as_we_left_it():
            return
        with _usable(self.path):
            if self._is_as_we_left_it():
                self._add()
            else:
                self._write_all()
        self._size = self._good = len(self._lines)

    def _is_as_we_left_it(self) -> bool:
        try:
            return self.path.stat().st_size == self._size
        except OSError:
            return self._lines == b""

    def _add(self) -> None:
        with self.path.open("r+b" if self._size else "wb") as file:
            self._size = -1  # unknown, until all of it has been written
            file.seek(self._good)
            file.write(self._lines[self._good :])
            file.truncate()

    def _write_all(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as part:
            part.write_bytes(self._lines)

    def truncate_to(self, step: int) -> int:
        """Cut back to a checkpoint's step: lines after it are removed, in the file all at once or not at all.

        Returns:
            The number of lines removed.

        Raises:
            UserError: a line in the middle of the file is damaged, or the disk cannot be written; then the file is cut
                by the next `append` or `flush`.
        """
        if self.last_step is None or self.last_step <= step:
            return 0
        parsed = list(_parsed(bytes(self._lines).splitlines(keepends=True), self.path))
        kept = [line for line, row in parsed if _step(row) <= step]
        self._lines = bytearray(b"".join(kept))
        self._find_last()
        self._good, self._size = 0, -1
        self.flush()
        return len(parsed) - len(kept)

    def _find_last(self) -> None:
        """Find the last whole line, and cut what a kill left after it."""
        self._last: Row | None = None
        self._last_start, end = 0, self._lines.rfind(b"\n") + 1
        while end and self._last is None:
            self._last_start = self._lines.rfind(b"\n", 0, end - 1) + 1
            self._last = _parse(self._lines[self._last_start : end])
            if self._last is None:
                end = self._last_start
        del self._lines[end:]


def rows(path: Path) -> Iterator[Row]:
    """The lines of a history file, oldest first, without holding them all; none where there is no file.

    A torn last line is dropped.

    Raises:
        UserError: a line in the middle of the file is damaged.
    """
    if path.exists():
        with path.open("rb") as file:
            for _, row in _parsed(file, path):
                yield row


def read(path: Path) -> list[Row]:
    """All lines of a history file, as `rows` gives them."""
    return list(rows(path))


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = "free space or mend the disk"
        raise NotWritten(f"{path}: cannot be written ({error.strerror or error}); {cure}") from error


def _parsed(lines: Iterable[bytes], path: Path) -> Iterator[tuple[bytes, Row]]:
    damaged = 0
    for number, line in enumerate(lines, start=1):
        if damaged:  # something follows it, so no kill tore it
            raise UserError(f"{path}, line {damaged}: not a line of a run's history; delete that line")
        row = _parse(line)
        if row is None:
            damaged = number
        else:
            yield line, row


def _parse(line: bytes | bytearray) -> Row | None:
    """A line's values, None where it is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = parse_json(line)
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
