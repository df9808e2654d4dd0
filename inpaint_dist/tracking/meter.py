"""How fast a run is going and what it waits for."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Meter:
    """Measures between two readings: images a second, the share of time waited for data, and when the run will end."""

    def __init__(self, images_per_step: int, total_steps: int) -> None:
        self._images, self._total = images_per_step, total_steps
        self._waited, self._steps = 0.0, 0
        self._since = time.perf_counter()

    def waiting(self, items: Iterable[Item], aside: Callable[[], float] = float) -> Iterator[Item]:
        """Hand the items on, counting the time that each was waited for.

        Args:
            items: what is waited for.
            aside: seconds up to now in which their maker waited for something else, which do not count.
        """
        iterator = iter(items)
        while True:
            before = time.perf_counter() - aside()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - aside() - before
            self._steps += 1
            yield item

    def read(self, step: int) -> dict[str, float]:
        """The figures since the last reading; call it when the device is done with `step` (a loss has been read)."""
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        rate = self._steps / elapsed
        figures = {
            "images_per_second": rate * self._images,
            "data_wait": min(1.0, self._waited / elapsed),
            "eta_seconds": (self._total - step) / rate if rate else 0.0,
        }
        self._since, self._waited, self._steps = now, 0.0, 0
        return figures

    def skip(self) -> None:
        """Leave what happened since the last reading out of the next: an evaluation, a checkpoint."""
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0
