"""A folder on another machine that files are written to, each whole: any URL that fsspec can write to."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

from inpaint_dist.data.remote import PATIENCE, Patience, RemoteError, redacted, remote_errors, shown_folder, tried
from inpaint_dist.errors import UserError
from inpaint_dist.host import PART, written_whole

_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"})
"""Kinds of URL where a file appears when it is whole, and to rename one is to write it twice."""


class Upload:
    """Where files are put; may be sent to other processes, each of which connects when it first needs to.

    Args:
        url: the folder.

    Raises:
        UserError: no file can be written to such a URL.
    """

    patience: Patience = PATIENCE
    """With its server."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme.lower() in ("http", "https"):
            raise UserError(f"--upload {redacted(url)}: web servers take no files; give s3://, gs:// or another store")
        if urlsplit(url).query or urlsplit(url).fragment:
            raise UserError(f"--upload {redacted(url)}: a folder's URL has no ? and no #")
        self.url, self.shown = url, shown_folder(url)

    def sizes(self) -> dict[str, int]:
        """Names and sizes in bytes of what lies there; nothing where there is no such folder.

        Raises:
            RemoteError: it cannot be looked at.
        """

        def look() -> dict[str, int]:
            with remote_errors(self.url, self.shown):
                system, folder = self._open()
                try:
                    system.invalidate_cache(folder)
                    found = system.ls(folder, detail=True)
                except FileNotFoundError:
                    return {}
                return {str(one["name"]).rsplit("/", 1)[-1]: one["size"] for one in found if one["type"] == "file"}

        return tried(look, self.patience, crc32(self.url.encode()))

    def put(self, path: Path) -> None:
        """Write a file there, under its own name, whole or not at all; and look whether all of it came.

        Raises:
            RemoteError: it cannot be written.
        """
        shown, size = f"{self.shown}/{path.name}", path.stat().st_size
        in_store = urlsplit(self.url).scheme.lower() in _STORES

        def once() -> None:
            with remote_errors(self.url, shown):
                system, folder = self._open()
                place = f"{folder}/{path.name}"
                if (here := self.folder) is not None:
                    here.mkdir(parents=True, exist_ok=True)
                    with written_whole(here / path.name, apart=True) as part:
                        shutil.copyfile(path, part)
                elif in_store:
                    system.put_file(str(path), place)
                else:
                    system.makedirs(folder, exist_ok=True)
                    system.put_file(str(path), f"{place}{PART}")
                    system.mv(f"{place}{PART}", place)
                came = system.info(place)["size"]
            if came != size:
                raise RemoteError(f"{shown}: {came} of {size} bytes came", passing=True)

        tried(once, self.patience, crc32(shown.encode()))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            RemoteError: it cannot be removed.
        """
        shown = f"{self.shown}/{name}"

        def once() -> None:
            with remote_errors(self.url, shown):
                system, folder = self._open()
                try:
                    system.rm_file(f"{folder}/{name}")
                except FileNotFoundError:
                    return

        tried(once, self.patience, crc32(shown.encode()))

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one of this machine."""
        from fsspec.implementations.local import LocalFileSystem

        with remote_errors(self.url, self.shown):
            system, folder = self._open()
        return Path(folder) if isinstance(system, LocalFileSystem) else None

    def _open(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        system, folder = url_to_fs(self.url)
        return system, folder.rstrip("/")
