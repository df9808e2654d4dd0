"""Pictures that were found, one by one and by the million."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload


class Source(NamedTuple):
    """One picture that was found, not read yet."""

    path: str
    """Relative to the place that was given, `/` between its parts: what the key is made from."""
    name: str
    """What shards and messages call it, without anything of this machine: the path, in an archive `a.zip:member`."""
    file: str
    """The file on disk, or the archive."""
    member: str
    """The name within the archive; empty for a file."""
    size: int
    """Bytes."""


class _Place(NamedTuple):
    """What the pictures of one place have in common."""

    root: str
    """What stands before the path in a file's name; of an archive, the whole of it."""
    before: str | None
    """What stands before the path in a member's name; None for files."""


class Sources(Sequence[Source]):
    """A list of sources in some 20 bytes and the path each, a tenth of what objects take; they are made when asked for.

    It travels to other processes as it lies in memory.
    """

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._places: list[_Place] = []
        self._numbers: dict[_Place, int] = {}
        self._paths = bytearray()
        self._ends, self._sizes, self._place_of = array("Q"), array("Q"), array("I")
        for source in sources:
            self.append(source)

    def append(self, source: Source) -> None:
        """Put one at the end."""
        if source.member:
            place = _Place(source.file, source.member[: len(source.member) - len(source.path)])
        else:
            place = _Place(source.file[: len(source.file) - len(source.path)], None)
        number = self._numbers.get(place)
        if number is None:
            number = self._numbers[place] = len(self._places)
            self._places.append(place)
        self._paths += source.path.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._paths))
        self._sizes.append(source.size)
        self._place_of.append(number)

    def path(self, number: int) -> str:
        """The path of one."""
        start = self._ends[number - 1] if number else 0
        return self._paths[start : self._ends[number]].decode("utf-8", "surrogateescape")

    def size(self, number: int) -> int:
        """The bytes of one."""
        return self._sizes[number]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Source: ...
    @overload
    def __getitem__(self, number: slice) -> list[Source]: ...
    def __getitem__(self, number: int | slice) -> Source | list[Source]:
        if isinstance(number, slice):
            return [self._make(one) for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._make(number % len(self))

    def __iter__(self) -> Iterator[Source]:
        return map(self._make, range(len(self)))

    def _make(self, number: int) -> Source:
        path, (root, before) = self.path(number), self._places[self._place_of[number]]
        if before is None:
            return Source(path, path, root + path.replace("/", os.sep), "", self._sizes[number])
        member = before + path
        return Source(path, f"{os.path.basename(root)}:{member}", root, member, self._sizes[number])  # noqa: PTH119
