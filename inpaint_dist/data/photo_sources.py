"""Finding photos and masks: folders, files, globs, .zip archives, and a place in one (`archive.zip:train/images`).

Nothing is unpacked: a member of an archive is read where it lies. Names inside an archive are never used as paths.
"""

import glob
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from inpaint_dist.data.headers import JPEG_SIGNATURE, PNG_SIGNATURE
from inpaint_dist.data.photos import PhotoError
from inpaint_dist.data.shards import KEY
from inpaint_dist.data.source_table import Source, Sources
from inpaint_dist.errors import UserError

_DECODED = "jpg|jpeg|jpe|jfif|png|bmp|dib|gif|webp|tif|tiff|jp2|avif|ppm|pgm|pbm|pnm"
_NOT_DECODED = "heic|heif|jxl|tga|ico"  # photos all the same: named among the rejected, not passed over

EXTENSIONS = frozenset(f"{_DECODED}|{_NOT_DECODED}".split("|"))
"""Extensions of pictures, in lower case. Other files count as pictures where their first bytes say so."""

MAX_FILE = 1 << 29
"""A file of more bytes is not read."""

MAX_KEY = 72
"""Longest key; longer ones end in a hash instead of their tail."""

_SNIFFED = (JPEG_SIGNATURE, PNG_SIGNATURE, b"GIF87a", b"GIF89a")
_PLACE_IN_ZIP = re.compile(r"(.+?\.zip):(.*)", re.IGNORECASE)
_JUNK = frozenset({"__MACOSX", "Thumbs.db"})
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError)


@dataclass(kw_only=True)
class Found:
    """What lies at the places that were given."""

    sources: Sources = field(default_factory=Sources)
    """Pictures, sorted by path within each place."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Names of members that are not touched, and why."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Other files: extension → how many."""


def find_photos(places: Sequence[str], what: str) -> Found:
    """Every picture at the places, each once.

    Args:
        places: folders (nested, links followed), files, globs, .zip files, `archive.zip:folder`.
        what: how errors call them ("PHOTOS", "--masks").

    Raises:
        UserError: a place that does not exist or holds no picture.
    """
    found, seen = Found(), set[tuple[str, str]]()
    once = len(places) == 1 and Path(places[0]).is_dir()  # one folder's walk meets no name twice: nothing to remember
    for place in places:
        some = False
        for source in _look(os.path.expanduser(place), found, what):  # noqa: PTH111 - a glob is no Path
            some = True
            if once or (source.file, source.member) not in seen:
                if not once:
                    seen.add((source.file, source.member))
                found.sources.append(source)
        if not some:
            raise UserError(f"{what} {place}: no picture there{_instead(found)}")
    return found


def _instead(found: Found) -> str:
    if not found.ignored:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.ignored.most_common(4))
    zips = "; name a .zip itself to read it" if "*.zip" in found.ignored else ""
    return f" (other files: {kinds}{zips})"


def _look(place: str, found: Found, what: str) -> Iterator[Source]:
    path = Path(place)
    in_zip = _PLACE_IN_ZIP.fullmatch(place)
    if path.is_dir():
        yield from _in_folder(path, path, found)
    elif path.is_file() and path.suffix.lower() == ".zip":
        yield from _in_zip(path, "", found, what)
    elif path.is_file():
        yield from _single(str(path), _Root(path.parent, path.parent), path.name, found)
    elif in_zip and Path(in_zip[1]).is_file():
        yield from _in_zip(Path(in_zip[1]), in_zip[2].strip("/"), found, what)
    elif glob.has_magic(place):
        yield from _in_glob(place, found, what)
    else:
        raise UserError(f"{what} {place}: no such file or folder")


def _in_glob(pattern: str, found: Found, what: str) -> Iterator[Source]:
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        path = Path(match)
        if path.is_dir():
            yield from _in_folder(path, root, found)
        elif path.suffix.lower() == ".zip":
            yield from _in_zip(path, "", found, what)
        else:
            yield from _single(str(path), _Root(path.parent, root), path.name, found)


def _in_folder(folder: Path, root: Path, found: Found) -> Iterator[Source]:
    """Pictures below a folder in the order of their names; a folder that links lead to twice is walked once."""
    walked: set[tuple[int, int]] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        status = Path(at).stat()
        if (status.st_dev, status.st_ino) in walked:
            folders.clear()
            continue
        walked.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        here = _Root(Path(at), root)
        for name in sorted(files):
            yield from _single(f"{at}{os.sep}{name}", here, name, found)


class _Root:
    """What the files of one folder have in common, found out once: a million of them take a minute otherwise."""

    def __init__(self, folder: Path, root: Path) -> None:
        inside = folder.relative_to(root).as_posix()
        self.before = "" if inside == "." else f"{inside}/"
        """What stands before a file's name in its path."""
        self.file = os.path.join(os.path.abspath(root), self.before)  # noqa: PTH100, PTH118 - resolve() loses links
        """What stands before a file's name on disk."""


def _single(path: str, here: _Root, name: str, found: Found) -> Iterator[Source]:
    if _is_junk(name):
        return
    relative, known = here.before + name, _extension(name) in EXTENSIONS
    try:
        status = os.stat(path)  # noqa: PTH116 - no Path is made for each of a million
        is_picture = stat.S_ISREG(status.st_mode) and (known or _sniff(path))
    except OSError as error:  # a link to nowhere, a file that may not be read
        if known:
            found.refused.append((relative, f"cannot be read ({error.strerror})"))
        return
    if is_picture:
        yield Source(relative, relative, here.file + name, "", status.st_size)
    else:
        found.ignored[f"*{Path(name).suffix.lower()}"] += 1


def _sniff(path: str) -> bool:
    with Path(path).open("rb") as file:
        return _is_picture(file.read(16))


def _is_picture(start: bytes) -> bool:
    return start.startswith(_SNIFFED) or (start.startswith(b"RIFF") and start[8:12] == b"WEBP")


def _in_zip(archive: Path, folder: str, found: Found, what: str) -> Iterator[Source]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in sorted(opened.infolist(), key=lambda info: info.filename):
                yield from _member(opened, info, archive, folder, found)
    except (OSError, *_READ_ERRORS) as error:
        raise UserError(f"{what} {archive}: not a .zip that can be read ({error})") from None


def _member(
    opened: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path, folder: str, found: Found
) -> Iterator[Source]:
    member = info.filename
    parts = member.split("/")
    inside = not folder or member == folder or member.startswith(f"{folder}/")
    if not inside or info.is_dir() or (any(map(_is_junk, parts)) and ".." not in parts):
        return
    name = f"{archive.name}:{member}"
    if ".." in parts or member.startswith("/") or "\\" in member or "\0" in member:
        found.refused.append((name, "its name leads out of the archive"))
        return
    extension = _extension(member)
    if extension not in EXTENSIONS and not (extension == "" and _sniff_member(opened, info)):
        found.ignored[f"*.{extension}"] += 1
        return
    path = member.removeprefix(folder).lstrip("/") or parts[-1]
    yield Source(path, name, os.path.abspath(archive), member, info.file_size)  # noqa: PTH100


def _sniff_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    try:
        with opened.open(info) as file:
            return _is_picture(file.read(16))
    except (OSError, *_READ_ERRORS):
        return False


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


class PhotoReader:
    """The bytes of sources; archives stay open between reads. One for each process."""

    def __init__(self) -> None:
        self._archives: dict[str, zipfile.ZipFile] = {}

    def read(self, source: Source) -> bytes:
        """All bytes of a picture.

        Raises:
            PhotoError: it cannot be read, is damaged or encrypted in its archive, or is too large.
        """
        try:
            if not source.member:
                with Path(source.file).open("rb") as file:
                    data = file.read(MAX_FILE + 1)
            else:
                with self._archive(source.file).open(source.member) as file:
                    data = file.read(MAX_FILE + 1)  # bounded by what comes out, not by what the archive claims
        except (OSError, KeyError, *_READ_ERRORS) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise PhotoError(source.name, f"cannot be read ({reason})") from None
        if len(data) > MAX_FILE:
            raise PhotoError(source.name, f"more than {MAX_FILE} bytes")
        return data

    def _archive(self, file: str) -> zipfile.ZipFile:
        if file not in self._archives:
            self._archives[file] = zipfile.ZipFile(file)
        return self._archives[file]

    def __enter__(self) -> "PhotoReader":
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()


def stem(path: str) -> str:
    """A picture's path without its extension; a dot that starts no extension of a picture stays."""
    head, dot, tail = path.rpartition(".")
    return head if dot and tail.lower() in EXTENSIONS else path


def key_of(path: str) -> str:
    """The key of a sample: letters, digits, `_` and `-` alone, for readers split a member's name at its first dot.

    `/` becomes `__`, a character beyond ASCII its code point (`u00e9`), any other `_`; beyond 72 characters the tail
    becomes a hash.
    """
    plain = stem(path).replace("/", "__")
    if not KEY.fullmatch(plain):
        plain = "".join(map(_in_key, unicodedata.normalize("NFC", stem(path))))
    if len(plain) <= MAX_KEY:
        return plain
    return f"{plain[: MAX_KEY - 17]}-{sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def _in_key(character: str) -> str:
    if character == "/":
        return "__"
    if not character.isascii():
        return f"u{ord(character):04x}"
    return character if character.isalnum() or character in "_-" else "_"
