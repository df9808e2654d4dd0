"""Progress of long work: a bar on a terminal, a line now and then where the output goes to a file."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from inpaint_dist.duration import duration

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts towards a total on stderr, with rate and time left; a context manager."""

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0):
        self.label, self.total, self.unit = label, total, unit
        self._first = self.done = done
        self._start = self._last_line = time.monotonic()
        self._bar = (
            tqdm(desc=label, total=total, unit=unit, initial=done, smoothing=0.1) if sys.stderr.isatty() else None
        )

    def update(self, done: int) -> None:
        """Say that `done` of the total are done by now."""
        if self._bar is not None:
            self._bar.update(done - self.done)
        self.done = done
        if self._bar is None and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            sys.stderr.write(self.line() + "\n")
            sys.stderr.flush()

    def line(self) -> str:
        """`shards 1200/35000 3.4% | 412 photos/s | eta 1m24s`."""
        rate = (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        share = 100 * self.done / max(self.total, 1)
        return f"{self.label} {self.done}/{self.total} {share:.1f}% | {rate:.0f} {self.unit}s/s | eta {left}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
