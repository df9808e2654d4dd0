"""A folder on another machine that files are written to, each whole: any URL that fsspec can write to."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

from inpaint_dist.data.remote import PATIENCE, Patience, RemoteError, redacted, remote_errors, shown_folder, tried
from inpaint_dist.errors import UserError
from inpaint_dist.host import written_whole


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
                    found = system.ls(folder, detail=True, refresh=True)
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

        def once() -> None:
            with remote_errors(self.url, shown):
                system, folder = self._open()
                place = f"{folder}/{path.name}"
                if _is_local(system):  # which would show it half-written
                    Path(folder).mkdir(parents=True, exist_ok=True)
                    with written_whole(Path(place), apart=True) as part:
                        shutil.copyfile(path, part)
                else:
                    system.put_file(str(path), place)
                came = system.info(place)["size"]
            if came != size:
                raise RemoteError(f"{shown}: {came} of {size} bytes came", passing=True)

        tried(once, self.patience, crc32(shown.encode()))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            RemoteError: it cannot be removed.
        """
        with remote_errors(self.url, f"{self.shown}/{name}"):
            system, folder = self._open()
            if system.exists(f"{folder}/{name}"):
                system.rm_file(f"{folder}/{name}")

    def _open(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        system, folder = url_to_fs(self.url)
        return system, folder.rstrip("/")


def _is_local(system: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(system, LocalFileSystem)
