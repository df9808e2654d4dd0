"""What make_shards has to say when it is done, and what the records of all shards come to."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inpaint_dist.data.sharding_plan import Plan
from inpaint_dist.data.sharding_state import PartOf, ShardRecord
from inpaint_dist.data.shards import SPLITS

REJECTED_NAME = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True)
class ShardingReport:
    """What make_shards did."""

    out: Path
    """The folder of shards."""
    train: int
    """Samples of the train split."""
    val: int
    """Samples of the val split."""
    shards: int
    """Tars."""
    bytes: int
    """Bytes of all tars."""
    rejected: int
    """Photos left out; rejected.jsonl names each."""
    copied: int
    """Photos whose JPEG bytes were copied."""
    enlarged: int
    """Photos that were smaller than the size."""
    seconds: float
    """Wall time."""
    notes: tuple[str, ...]
    """What the user should know."""

    def lines(self) -> list[str]:
        """The report in words."""
        made = f"{self.out}: {self.train} train and {self.val} val samples in {self.shards} shards"
        rate = (self.train + self.val + self.rejected) / max(self.seconds, 1e-9)
        lines = [f"{made}, {self.bytes / 1e6:.1f} MB, in {self.seconds:.1f} s ({rate:.0f} photos/s)"]
        if self.copied:
            lines.append(f"{self.copied} photos were JPEGs of this size already: their bytes were copied")
        if self.rejected:
            lines.append(f"{self.rejected} photos were left out: {self.out / REJECTED_NAME} says why")
        return lines + [f"note: {note}" for note in self.notes]


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """What make_shards did of one part."""

    out: Path
    """The folder of shards."""
    part: PartOf
    """Which part it was."""
    made: int
    """Shards made now."""
    shards: int
    """Shards of this part, all of which are done."""

    def lines(self) -> list[str]:
        """The report in words."""
        return [
            f"{self.out}: part {self.part} is done, {self.shards} shards ({self.made} made now)",
            "when all parts are done: the same command with --merge in place of --part writes the index",
        ]


class Total:
    """What the records of all shards come to, a few bytes a photo."""

    def __init__(self) -> None:
        self.samples, self.shards = Counter[str](), Counter[str]()
        self.bytes = self.rejected = self.copied = self.enlarged = 0
        self.bad_masks: dict[str, str] = {}
        self.first_rejected = ("", "")
        self._hashes = {split: bytearray() for split in SPLITS}

    def add(self, record: ShardRecord) -> None:
        """Count one more."""
        split = record.name.partition("-")[0]
        self.samples[split] += record.samples
        self.shards[split] += record.samples > 0
        self.bytes += record.bytes
        self.copied += record.copied
        self.enlarged += record.enlarged
        self.bad_masks |= record.bad_masks
        if record.rejected and not self.rejected:
            name, reason = record.rejected[0]
            self.first_rejected = (name, reason)
        self.rejected += len(record.rejected)
        self._hashes[split] += bytes.fromhex("".join(digest[:16] for digest in record.hashes))

    def hashes(self, split: str) -> NDArray[np.uint64]:
        """The first 64 bits of each photo's sha256: of a million, two agree by chance once in 37 million sets."""
        return np.frombuffer(self._hashes[split], np.uint64)


def notes_on(plan: Plan, total: Total, size: int) -> list[str]:
    """What the user should know of the shards, beyond the plan's own notes."""
    notes: list[str] = []
    if len(plan.val) and not total.samples["val"]:
        notes.append(f"val is empty: none of its {len(plan.val)} photos could be used")
    if plan.refused:
        notes.append(f"{len(plan.refused)} files were not touched: {REJECTED_NAME} says why")
    if total.bad_masks:
        notes.append(f"{len(total.bad_masks)} masks could not be used: {REJECTED_NAME} says why")
    if total.enlarged:
        notes.append(f"{total.enlarged} photos were smaller than {size} pixels and were enlarged")
    train, val = (np.unique(total.hashes(split)) for split in SPLITS)
    if leaked := np.intersect1d(train, val, assume_unique=True).size:
        notes.append(
            f"{leaked} photos are in train and in val, byte for byte: scores on val will flatter; "
            "--drop-duplicates leaves them out"
        )
    if twice := total.hashes("train").size - train.size:
        notes.append(f"{twice} photos of train are copies of others, byte for byte")
    return notes
