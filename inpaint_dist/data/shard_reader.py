"""The bytes of any member of any sample of indexed shards, checked against their checksums."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

from zlib_ng import zlib_ng

from inpaint_dist.data.shards import Member, ShardIndex
from inpaint_dist.data.tar import ShardError

_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would be waited for
_OPEN_FILES = 256  # a process may hold 1,024 by default, and a set of a million samples has a thousand shards
_GAP = 4096
"""Bytes between two members of a tar that cost less to read than a second call: headers and padding."""
_KEPT = 1 << 25
"""Bytes of memory that a thread keeps at most."""


class ShardReader:
    """The bytes of any member, checked against its checksum. Safe to share among threads, to pickle and to fork."""

    def __init__(self, index: ShardIndex):
        self.index = index
        self.stop = threading.Event()
        """When set, nobody waits for what a remote shard needs: reading one that is not here raises."""
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._of_thread = threading.local()

    def read(self, i: int, extension: str) -> bytes:
        """The bytes of one member of sample i.

        Raises:
            ShardError: the shard is missing, of another size than the index says, unreadable, or its bytes changed.
            UserError: a remote shard cannot be had.
        """
        index, member = self.index, self.index.member(i, extension)
        data = self._bytes(i, extension, member)
        if index.foreign or zlib_ng.crc32(data) == member.crc32:
            return data
        if index.remote is not None and index.remote.removed_as_damaged(index.shards[member.shard]):
            data = self._bytes(i, extension, member)
            if zlib_ng.crc32(data) == member.crc32:
                return data
        name = self._name(i, extension)
        raise ShardError(f"{name} is damaged (its checksum does not fit); tools/check_shards.py lists all faults")

    def read_together(self, wanted: Sequence[tuple[int, str]]) -> list[memoryview]:
        """The bytes of several members, each a sample and an extension; good until this thread's next call.

        They are read into memory that the thread uses again and again, and members that follow each other in a tar at
        once: new memory for each costs more than the reading.

        Raises:
            ShardError, UserError: as `read`, for one of them.
        """
        members = self.index.members(wanted)
        room = self._room(sum(member.size + _GAP for member in members))
        found: list[memoryview] = []
        place = first = 0
        while first < len(members):
            shard, start, size, _ = members[first]
            end, last = start + size, first + 1
            while last < len(members) and members[last].shard == shard and 0 <= members[last].offset - end <= _GAP:
                end, last = members[last].offset + members[last].size, last + 1
            run = room[place : place + end - start]
            try:
                opened = self._shard(shard)  # it closes with its last user
                is_whole = os.preadv(opened.descriptor, [run], start) == end - start
            except OSError:
                is_whole = False  # `read` says it below
            for number, member in enumerate(members[first:last], first):
                data = run[member.offset - start :][: member.size]
                if not is_whole or not (self.index.foreign or zlib_ng.crc32(data) == member.crc32):
                    data = memoryview(self.read(*wanted[number]))
                found.append(data)
            place, first = place + end - start, last
        return found

    def _room(self, size: int) -> memoryview:
        """Memory of this thread's own, of at least so many bytes."""
        if size > _KEPT:
            return memoryview(bytearray(size))
        room: memoryview | None = getattr(self._of_thread, "room", None)
        if room is None or len(room) < size:
            room = self._of_thread.room = memoryview(bytearray(size))
        return room

    def _bytes(self, i: int, extension: str, member: Member) -> bytes:
        shard = self._shard(member.shard)
        try:
            data = os.pread(shard.descriptor, member.size, member.offset)
        except OSError as error:
            raise ShardError(f"{self._name(i, extension)} cannot be read ({error.strerror})") from None
        if len(data) != member.size:
            raise ShardError(f"{self._name(i, extension)} is cut short ({len(data)} of {member.size} bytes)")
        return data

    def close(self) -> None:
        """Let go of the files; a later read opens them again."""
        with self._lock:
            self._open.clear()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> ShardIndex:
        return self.index

    def __setstate__(self, index: ShardIndex) -> None:
        self.__init__(index)

    def _name(self, i: int, extension: str) -> str:
        return f"{self.index.where(self.index.shard_of.item(i))}: {self.index.keys[i]}.{extension}"

    def _shard(self, number: int) -> "_OpenShard":
        if self.index.remote is not None:  # not kept open: what is in use cannot leave the cache
            return _OpenShard(self.index, number, self.stop)
        with self._lock:
            shard = self._open.get(number)
            if shard is None:
                shard = self._open[number] = _OpenShard(self.index, number)
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return shard


class _OpenShard:
    """An open tar. It closes with its last user: a thread may still read while the reader already lets go of it."""

    def __init__(self, index: ShardIndex, number: int, stop: threading.Event | None = None):
        self.descriptor = -1
        info = index.shards[number]
        if index.remote is not None:
            self.descriptor = index.remote.open(info, stop)
            return
        path = index.folder / info.name
        try:
            self.descriptor = os.open(path, _READ)
        except OSError as error:
            raise ShardError(f"{path} cannot be opened ({error.strerror}), but the index lists it") from None
        size = os.fstat(self.descriptor).st_size
        if size != info.bytes:
            raise ShardError(f"{path} has {size} bytes, the index says {info.bytes}: it was cut short or changed")

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
