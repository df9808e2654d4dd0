"""Tars as streams, wherever they are: a file, a URL, what a shell command prints."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGTERM
from subprocess import DEVNULL, Popen
from subprocess import PIPE as PIPED
from tempfile import TemporaryFile
from typing import Any

from inpaint_dist.data.remote import PATIENCE, PIPE, download, is_pipe, is_remote, redacted
from inpaint_dist.errors import UserError


def opened_tars(shards: list[str], cache: Path | None) -> Generator[dict[str, Any], None, None]:
    """Each shard as a stream, closed when read; webdataset's own opener runs any command, and leaves files open.

    Args:
        shards: paths, URLs or commands.
        cache: the folder for a remote tar while it is read; None: where the system puts such files.

    Raises:
        UserError: a shard cannot be had.
    """
    for shard in shards:
        with _opened(shard, cache) as stream:
            yield {"url": redacted(shard), "stream": stream}


@contextmanager
def _opened(shard: str, cache: Path | None) -> Iterator[Any]:
    if is_pipe(shard):
        with _Command(shard.removeprefix(PIPE)) as command:
            yield command
    elif is_remote(shard):
        with _room(cache) as file:  # whole, so that one that breaks off can be fetched again
            download(shard, file, PATIENCE, *shard.encode())
            yield file
    else:
        with Path(shard).open("rb") as stream:
            yield stream


def _room(cache: Path | None) -> Any:
    """A file without a name: it goes with this process, however that ends."""
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        return TemporaryFile(dir=cache)
    except OSError as error:
        raise UserError(f"--shard-cache {cache}: {error.strerror}; name another folder") from None


class _Command:
    """What a shell command prints. It ends with the reading."""

    def __init__(self, command: str) -> None:
        self._process = Popen(command, shell=True, stdin=DEVNULL, stdout=PIPED, start_new_session=True)

    def read(self, size: int) -> bytes:
        """Some of its output, nothing at its end.

        Raises:
            UserError: it has failed.
        """
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if not data and (code := self._process.wait()):
            raise UserError(f"{PIPE}***: the command failed (exit code {code}); its own message stands above")
        return data

    def __enter__(self) -> "_Command":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, SIGTERM)  # the shell's children too
            self._process.wait()
