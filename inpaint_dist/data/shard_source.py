"""One tar as the index knows it, and where its bytes come from where that is no folder of this machine."""

import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar as the index knows it."""

    name: str
    """File name within the folder."""
    samples: int
    """How many samples it holds."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the whole file, hex."""


@runtime_checkable
class ShardSource(Protocol):
    """Gives the files of shards that lie elsewhere. Its text is the place, as it may be shown."""

    def open(self, info: ShardInfo, stop: threading.Event | None = None) -> int:
        """A descriptor of the shard's bytes, for the caller to close soon; `stop` ends the waiting for it."""
        ...

    @property
    def limit(self) -> int:
        """Bytes of shards that can be here at once."""
        ...

    def is_here(self, info: ShardInfo) -> bool:
        """Whether `open` would not wait; if so the shard counts as used now."""
        ...

    def fetch_ahead(self, info: ShardInfo, needed: Collection[str], stop: threading.Event) -> bool:
        """Bring a shard here, but for none of `needed` (hashes); whether it is here now."""
        ...

    def removed_as_damaged(self, info: ShardInfo) -> bool:
        """After a checksum that does not fit: whether the copy was to blame, and `open` may give a good one."""
        ...
