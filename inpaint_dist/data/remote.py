"""Reading from other machines: http(s) by the standard library, any other URL by fsspec; what may be shown of a URL.

What contacts another machine runs only after --allow-remote: a URL may make a library run a command.
"""

import http.client
import re
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote, urlsplit, urlunsplit

from inpaint_dist.chance import mix
from inpaint_dist.errors import UserError

PIPE = "pipe:"
"""What a command begins with whose output is a tar, as webdataset has it."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://|[a-z0-9]+::)")
# Rather too much than a password; what follows a query that is left out already stays.
_SECRETS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S*@)?([^?#\s]*)([?#](?:\*{3}(?=[\s:;,]|$)|\S*))?")
_COMMAND = re.compile(rf"(--[\w.-]+=)?{PIPE}")
_BLOCK = 1 << 18  # bytes asked for at once
_LEAST = 1 << 10  # bytes a second that a server must send on average over a timeout, or it hangs
_FINAL = frozenset({400, 401, 403, 404, 405, 410, 411, 414, 416})  # of HTTP: the same request fails again

Result = TypeVar("Result")
Seen = Mapping[str, str]
"""What tells one version of a file from another: size, time, ETag, as far as the server says them."""


def is_pipe(place: str) -> bool:
    """Whether a --shards value is a command."""
    return place.startswith(PIPE)


def is_remote(place: str) -> bool:
    """Whether a --shards value is a URL, of whatever kind; `file://` and `memory://` are too."""
    return _URL.match(place) is not None and not is_pipe(place)


def redacted(text: str) -> str:
    """A text with its URLs, but without user, password and query, which may be secret; a command goes as a whole."""
    if command := _COMMAND.match(text):
        return f"{command[0]}***"
    return _SECRETS.sub(lambda url: f"{url[1]}{'***@' if url[2] else ''}{url[3]}{'?***' if url[4] else ''}", text)


def shown_folder(url: str) -> str:
    """The URL of a folder as it may be shown, for the name of a file to follow."""
    return redacted(url).removesuffix("?***").rstrip("/")


class RemoteError(UserError):
    """A file cannot be had from where it is; `passing` says whether it may be had later."""

    def __init__(self, message: str, *, passing: bool = False):
        super().__init__(redacted(message))
        self.passing = passing


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a failing server is borne with."""

    tries: int = 5
    """Requests for one file, at most."""
    timeout: float = 30.0
    """Seconds without a byte, or with next to none, after which a request has failed."""
    first_wait: float = 0.5
    """Seconds before the second try, about; before each later one twice as many."""
    longest_wait: float = 30.0
    """Seconds between two tries, at most."""

    def wait(self, attempt: int, *name: int) -> float:
        """Seconds after a try that failed, counted from 0: up to a half less, by a draw that `name` alone decides."""
        return min(self.longest_wait, self.first_wait * 2**attempt) * (1 - mix(*name, attempt) / 2**65)


PATIENCE = Patience()
"""Where nobody says otherwise."""


def tried(
    action: Callable[[], Result],
    patience: Patience,
    *name: int,
    stop: threading.Event | None = None,
) -> Result:
    """Do something until it succeeds.

    Args:
        action: it raises RemoteError; one that is not passing ends the trying.
        patience: how often and how long.
        name: of the random draws of the waiting, so that not all machines come back at once.
        stop: when set, nobody waits for it any more.

    Raises:
        RemoteError: the last one.
    """
    stop = stop or threading.Event()
    for attempt in range(patience.tries):
        try:
            return action()
        except RemoteError as error:
            if not error.passing:
                raise
            if attempt + 1 == patience.tries:
                raise RemoteError(
                    f"{error} ({patience.tries} tries); look whether the server is up and the network is, then give "
                    "the same command again",
                    passing=True,
                ) from None
        if stop.wait(patience.wait(attempt, *name)):
            break
    raise RemoteError("stopped while waiting for a server")


@runtime_checkable
class Answer(Protocol):
    """A file on its way."""

    seen: Seen
    """Its version."""
    length: int | None
    """Its bytes, where the server says so."""

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size` of them; none at the end."""
        ...


@contextmanager
def opened(url: str, name: str, timeout: float, unless: Seen | None = None) -> Iterator[Answer | None]:
    """Ask for a file of a remote folder.

    Args:
        url: the folder, or the file itself.
        name: the file in the folder; empty: `url` is that of a file.
        timeout: seconds without a byte after which it has failed (of http; other libraries have their own).
        unless: the version that is at hand; where the file still is that one, None is given.

    Raises:
        RemoteError: it cannot be had, or reading it failed within the block.
    """
    shown = f"{shown_folder(url)}/{name}" if name else redacted(url)
    is_http = urlsplit(url).scheme.lower() in ("http", "https")
    asked = _by_http(url, name, timeout, unless) if is_http else _by_fsspec(url, name, unless)
    with remote_errors(url, shown), asked as answer:
        yield answer


@contextmanager
def remote_errors(url: str, shown: str) -> Iterator[None]:
    """Make RemoteErrors of what the libraries raise that reach other machines.

    Args:
        url: what is asked for.
        shown: its name in the errors.

    Raises:
        RemoteError: whatever was raised but UserErrors; passing where it may be had later.
    """
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except urllib.error.HTTPError as error:
        final = error.code in _FINAL
        cure = "; look at the URL and at who may read it" if final else ""
        raise RemoteError(f"{shown}: the server says {error.code} {error.reason}{cure}", passing=not final) from None
    except ImportError as error:
        kind = urlsplit(url).scheme
        package = {"s3": 'pip install "inpaint-dist[s3]"', "gs": 'pip install "inpaint-dist[gs]"'}.get(kind)
        raise RemoteError(f"{shown}: {package or error}") from None
    except (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        raise RemoteError(f"{shown}: {type(error).__name__}; look at the URL and at what one may do there") from None
    except (NotImplementedError, TypeError) as error:
        raise RemoteError(f"{shown}: its library cannot do what is asked of it ({error})") from None
    except ValueError as error:
        raise RemoteError(f"{shown}: {error}") from None
    except Exception as error:  # noqa: BLE001 - the libraries behind fsspec raise errors of their own
        reason = getattr(error, "reason", None) or error
        raise RemoteError(f"{shown}: {str(reason) or type(error).__name__}", passing=True) from None


def blocks(answer: Answer, timeout: float, stop: threading.Event | None = None) -> Iterator[bytes]:
    """The bytes of an answer.

    Raises:
        RemoteError: it came too slowly to be called coming, or nobody waits for it any more.
        OSError, http.client.HTTPException: it broke off; `opened` makes a RemoteError of it.
    """
    since, came = time.monotonic(), 0
    while block := answer.read(_BLOCK):
        yield block
        came += len(block)
        if stop is not None and stop.is_set():
            raise RemoteError("stopped while a shard was on its way")
        if (now := time.monotonic()) - since > timeout:
            if came < _LEAST * timeout:
                raise RemoteError(f"only {came} bytes came in {now - since:.0f} seconds", passing=True)
            since, came = now, 0


def download(url: str, file: IO[bytes], patience: Patience, *name: int, member: str = "") -> None:
    """Bring a whole file of any size into an open one.

    Args:
        url: the file, or its folder.
        file: it is written from its beginning, and is left there.
        patience: with the server.
        name: of the random draws of the waiting.
        member: the file in the folder; empty: `url` is that of a file.

    Raises:
        RemoteError: it cannot be had.
    """
    shown = f"{shown_folder(url)}/{member}" if member else redacted(url)

    def once() -> None:
        file.seek(0)
        file.truncate()
        with opened(url, member, patience.timeout) as answer:
            if answer is None:
                raise RemoteError(f"{shown}: no answer", passing=True)
            for block in blocks(answer, patience.timeout):
                file.write(block)
            refuse_cut(shown, file.tell(), answer.length)

    tried(once, patience, *name)
    file.seek(0)


def refuse_cut(name: str, came: int, expected: int | None) -> None:
    """Look whether a file came to its end: a connection that breaks off looks like one.

    Raises:
        RemoteError: it did not.
    """
    if expected is not None and came < expected:
        raise RemoteError(f"{name}: broke off after {came} of {expected} bytes", passing=True)


# -------------------------------------------------------------------- http, by the standard library


@dataclass
class _HttpAnswer:
    response: http.client.HTTPResponse
    seen: Seen = field(init=False)
    length: int | None = field(init=False)

    def __post_init__(self) -> None:
        headers = {"etag": self.response.headers.get("ETag"), "modified": self.response.headers.get("Last-Modified")}
        self.seen = {name: value for name, value in headers.items() if value}
        self.length = self.response.length

    def read(self, size: int) -> bytes:
        return self.response.read1(size)  # `read` would wait for all of it, however slowly it comes


@contextmanager
def _by_http(url: str, name: str, timeout: float, unless: Seen | None) -> Iterator[Answer | None]:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    place = urlunsplit(
        (parts.scheme, host, f"{parts.path.rstrip('/')}/{name}" if name else parts.path, parts.query, "")
    )
    request = urllib.request.Request(place, headers={"User-Agent": "inpaint_dist"})
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Not sent on to wherever the server may redirect to.
        request.add_unredirected_header("Authorization", f"Basic {b64encode(pair.encode()).decode()}")
    for header, known in (("If-None-Match", "etag"), ("If-Modified-Since", "modified")):
        if unless and known in unless:
            request.add_header(header, unless[known])
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            yield _HttpAnswer(response)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 304:
            raise
        yield None


# -------------------------------------------------------------------- anything else, by fsspec


@dataclass
class _FileAnswer:
    file: Any
    seen: Seen
    length: int | None

    def read(self, size: int) -> bytes:
        return self.file.read(size)


@contextmanager
def _by_fsspec(url: str, name: str, unless: Seen | None) -> Iterator[Answer | None]:
    from fsspec.core import url_to_fs

    system, folder = url_to_fs(url)
    path = f"{folder.rstrip('/')}/{name}" if name else folder
    info: dict[str, Any] = system.info(path)
    versions = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "created", "generation", "md5Hash")
    seen = {key: str(info[key]) for key in versions if info.get(key) is not None}
    if unless and len(seen) > 1 and seen == unless:
        yield None
        return
    with system.open(path, "rb", block_size=1 << 23) as file:
        yield _FileAnswer(file, seen, info.get("size"))
