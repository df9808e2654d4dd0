"""Samples that a run cannot read: each is known by shard and key, counted once, and at most so many of them.

What is read in the place of one is decided in `sample_decoder`; here is the book that is kept of them.
"""

from collections.abc import Iterable
from typing import NamedTuple

from inpaint_dist.errors import UserError

_LISTED = 12


class BadSample(NamedTuple):
    """A sample that cannot be read."""

    shard: str
    """The tar's name."""
    key: str
    """The sample's."""
    reason: str
    """One line; names file and member."""


class SampleError(UserError):
    """A sample of training shards cannot be read; `bad` says which and why."""

    def __init__(self, bad: BadSample):
        super().__init__(bad)  # the sample itself, so that it survives the way from one process to another
        self.bad = bad

    def __str__(self) -> str:
        return self.bad.reason


class TooManyBadSamples(UserError):
    """More samples than the run allows cannot be read; lists them."""

    def __init__(self, limit: int, bad: Iterable[BadSample], *, on_every_rank: bool = False):
        reasons = [sample.reason for sample in bad]
        more = [f"  and {len(reasons) - _LISTED} more"] if len(reasons) > _LISTED else []
        if limit == 0 and len(reasons) == 1:
            text = f"{reasons[0]}\n--max-bad-samples N goes on without up to N such samples"
        else:
            lines = [f"  {reason}" for reason in reasons[:_LISTED]]
            head = f"--max-bad-samples {limit}: {len(reasons)} training samples cannot be read; mend them or allow more"
            text = "\n".join([head, *lines, *more])
        super().__init__(text)
        self.on_every_rank = on_every_rank


class BadSamples:
    """What one rank knows of the run's bad samples: those that all ranks agreed on, and those it met since.

    A sample that is met again, in a later epoch or by another rank, counts once.

    Args:
        limit: how many there may be.
        alone: whether this is the only rank. Of several none stops by itself, for the others would wait for it.
    """

    def __init__(self, limit: int, *, alone: bool = True):
        self.limit, self._alone = limit, alone
        self._agreed: dict[tuple[str, str], BadSample] = {}
        self._new: dict[tuple[str, str], BadSample] = {}

    def __len__(self) -> int:
        """How many, as far as this rank knows."""
        return len(self._agreed) + len(self._new)

    @property
    def new(self) -> list[BadSample]:
        """Met by this rank since the ranks last agreed."""
        return list(self._new.values())

    def note(self, met: Iterable[BadSample]) -> None:
        """Take down what this rank has met.

        Raises:
            TooManyBadSamples: this is the only rank, and they are more than the limit.
        """
        for sample in met:
            if (sample.shard, sample.key) not in self._agreed:
                self._new.setdefault((sample.shard, sample.key), sample)
        if self._alone and self._new and len(self) > self.limit:
            raise TooManyBadSamples(self.limit, [*self._agreed.values(), *self._new.values()])

    def agree(self, of_ranks: Iterable[Iterable[BadSample]]) -> list[BadSample]:
        """Join what each rank has met; every rank calls it with the same lists.

        Returns:
            Those that nobody knew of before, in the order of shards and keys.
        """
        met = {(sample.shard, sample.key): sample for new in of_ranks for sample in new}
        fresh = [met[name] for name in sorted(met.keys() - self._agreed.keys())]
        self._agreed |= {(sample.shard, sample.key): sample for sample in fresh}
        self._new.clear()
        return fresh

    def check(self) -> None:
        """Stop, on every rank alike, where all that the ranks agreed on are more than the limit.

        Raises:
            TooManyBadSamples: listing them.
        """
        if len(self._agreed) > self.limit:
            raise TooManyBadSamples(self.limit, self._agreed.values(), on_every_rank=True)

    def state(self) -> list[list[str]]:
        """What the ranks agreed on, as JSON has it."""
        return [list(sample) for sample in self._agreed.values()]

    def load_state(self, state: Iterable[Iterable[str]]) -> None:
        """Go on from what `state` gave."""
        self._agreed = {(shard, key): BadSample(shard, key, reason) for shard, key, reason in state}
        self._new = {}
