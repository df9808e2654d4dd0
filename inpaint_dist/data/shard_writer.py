"""Writing shards: a tar under a temporary name that gets its own only when it is whole and on the disk."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from inpaint_dist.data.shards import FORMAT, INDEX_NAME, KEY, SPLITS, ShardInfo
from inpaint_dist.data.tar import END, header, padded
from inpaint_dist.host import written_whole


class ShardWriter:
    """One shard, as a context manager: leaving it whole puts the file in place, leaving it by an exception removes it.

    The same samples give the same bytes on every run. After leaving, `record` is the shard's line in the index.
    """

    def __init__(self, path: Path):
        self.path = path
        self._keys: dict[str, None] = {}
        self._members: dict[str, dict[str, list[int]]] = {}
        self._offset = 0
        self._hash = hashlib.sha256()
        self._ending = ExitStack()
        part = self._ending.enter_context(written_whole(path, apart=True))
        self._file = self._ending.enter_context(part.open("wb"))

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample: its members by extension, in this order.

        Raises:
            ValueError: the key is not one of a shard, or was used before.
        """
        if not KEY.fullmatch(key) or key in self._keys:
            raise ValueError(f"{key!r} cannot be a key in {self.path.name}")
        before = len(self._keys)
        self._keys[key] = None
        for extension, data in members.items():
            columns = self._members.setdefault(extension, {name: [0] * before for name in ("offset", "size", "crc32")})
            self._write(header(f"{key}.{extension}", len(data)))
            for name, value in (("offset", self._offset), ("size", len(data)), ("crc32", zlib.crc32(data))):
                columns[name].append(value)
            self._write(data)
            self._write(bytes(padded(len(data)) - len(data)))
        for columns in self._members.values():  # zeros stand for a member that this sample lacks
            for column in columns.values():
                column += [0] * (len(self._keys) - len(column))

    def __len__(self) -> int:
        """How many samples were added."""
        return len(self._keys)

    @property
    def record(self) -> dict[str, Any]:
        """The shard's line in the index."""
        info = ShardInfo(name=self.path.name, samples=len(self), bytes=self._offset, sha256=self._hash.hexdigest())
        return {**vars(info), "keys": list(self._keys), "members": self._members}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._ending.__exit__(kind, error, trace)
            return
        with self._ending:
            self._write(END)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)


def write_index(
    folder: Path,
    *,
    size: int,
    settings: Mapping[str, Any],
    made_with: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Write index.json whole or not at all: last of all files, so that where it is the shards are complete."""
    counts = {
        split: [record["samples"] for record in records if record["name"].startswith(f"{split}-")] for split in SPLITS
    }
    splits = {split: {"shards": len(some), "samples": sum(some)} for split, some in counts.items()}
    head = {"format": FORMAT, "size": size, "splits": splits, "settings": settings, "made_with": made_with}
    write_index_lines(folder, head, map(compact_json, records))


def write_index_lines(folder: Path, head: Mapping[str, Any], lines: Iterable[str]) -> None:
    """`write_index` from what stands before the shards and their lines, of which one is in memory at a time."""
    with written_whole(folder / INDEX_NAME) as part, part.open("w", encoding="utf-8") as file:
        file.write(f'{compact_json(head)[:-1]},"shards":[\n')
        for number, line in enumerate(lines):  # a line for each shard: readers go line by line
            file.write(f",\n{line}" if number else line)
        file.write("\n]}\n")


def compact_json(value: object) -> str:
    """JSON without blanks, keys in their own order, ASCII only."""
    return json.dumps(value, separators=(",", ":"))
