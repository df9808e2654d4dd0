"""What a folder of shards knows of its own making, in OUT/.unfinished: a record of each shard that is done.

Whoever makes a shard writes its record right after the tar got its name, so that a kill at any moment costs no more
than the shards that were under way. A record holds for one plan: its settings, its inputs, and the libraries' versions.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import file_digest, sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from inpaint_dist.data.progress import Progress
from inpaint_dist.data.shard_writer import compact_json
from inpaint_dist.data.shards import INDEX_NAME, SHARD_NAME, UNFINISHED
from inpaint_dist.data.upload import Upload
from inpaint_dist.errors import UserError
from inpaint_dist.host import PART, parse_json, usable_cores, written_whole

_PART_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")
_SETTINGS = "settings.json"
UPLOADED = "uploaded-to.txt"
"""In a folder whose shards were put elsewhere: where."""
_BEFORE = {"fit": "crop"}  # how folders were made before there was a choice


class PartOf(NamedTuple):
    """One share of the shards, of those that a job array makes."""

    number: int
    """From 1."""
    parts: int
    """How many there are."""

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What came of one shard."""

    plan: str
    """Hash of what it was made by; another plan's record counts for nothing."""
    name: str
    """The shard's file name."""
    samples: int
    """How many it holds; 0 where no photo of it could be used, and no file was written."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the whole file, hex; empty where there is none."""
    rejected: list[tuple[str, str]]
    """Photos left out, and why, in the shard's order."""
    bad_masks: dict[str, str]
    """Masks of the pool that could not be used, and why."""
    hashes: list[str]
    """The sha256 of each photo's file, hex."""
    copied: int
    """Photos whose bytes were copied."""
    enlarged: int
    """Photos smaller than the size."""
    line: str
    """Its line in the index; empty where there is no file."""

    def write(self, path: Path) -> None:
        """Keep it; the index's line stands alone in the second line, which need not be parsed to be passed on."""
        about = {name: value for name, value in vars(self).items() if name != "line"}
        with written_whole(path, apart=True) as part:
            part.write_text(f"{compact_json(about)}\n{self.line}\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> "ShardRecord | None":
        """The record at a path; None where there is none, or no whole one."""
        try:
            about, line, rest = path.read_text("utf-8").split("\n")
            fields = parse_json(about)
            fields["rejected"] = [(name, reason) for name, reason in fields["rejected"]]
            record = cls(**fields, line=line)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if rest else record


class Unfinished:
    """The state of a folder of shards that is being made by one plan, here or, with `upload`, elsewhere."""

    def __init__(
        self, out: Path, settings: Mapping[str, Any], made_with: Mapping[str, str], upload: Upload | None = None
    ) -> None:
        self.out, self.settings, self.upload = out, settings, upload
        self.folder = out / UNFINISHED
        self.plan = sha256(compact_json({**settings, **made_with}).encode()).hexdigest()

    def open(self, part: PartOf | None) -> Path:
        """Begin, or go on; returns the folder that stands for this process, to be locked.

        Raises:
            UserError: it was begun with other settings or in other parts, or holds shards of unknown origin.
        """
        has_tars = any(SHARD_NAME.fullmatch(path.name) for path in self.out.iterdir())
        begun = [*self.folder.glob(_SETTINGS), *self.folder.glob(f"part-*/{_SETTINGS}")]
        for path in begun:  # looked for after the tars, which whoever makes them writes after its settings
            refuse_others(self.out, parse_json(path.read_text("utf-8")), self.settings)
        if not begun and has_tars and not (self.out / INDEX_NAME).exists():
            raise UserError(f"--out {self.out} has tars without an {INDEX_NAME}: name another folder, or remove them")
        counts = {other.parts for other in self.parts()}
        if part is not None and counts - {part.parts}:
            raise UserError(
                f"--part {part}: {self.out} was begun in {max(counts)} parts; give --part I/{max(counts)}, or run the "
                "command without --part, which makes whatever is missing"
            )
        if self.upload is not None:
            self._open_upload(self.upload)
        own = self.folder if part is None else self.folder / f"part-{part.number}-of-{part.parts}"
        own.mkdir(parents=True, exist_ok=True)
        with written_whole(own / _SETTINGS, apart=True) as written:
            written.write_text(compact_json(self.settings))
        (self.out / INDEX_NAME).unlink(missing_ok=True)  # it may list shards that have gone
        return own

    def refuse_another_place(self) -> None:
        """Look whether the folder's shards are where they are to be put now.

        Raises:
            UserError: they are here and are to be elsewhere, or the other way round.
        """
        # Looked at before the place, which another part, beginning now, writes before them.
        holds = (self.out / INDEX_NAME).exists() or self.folder.exists()
        try:
            there = (self.out / UPLOADED).read_text("utf-8").strip()
        except FileNotFoundError:
            there = ""
        if there and self.upload is None:
            raise UserError(f"--out {self.out}: its shards were put into {there}; add --upload with that URL")
        if self.upload is None or there == self.upload.shown:
            return
        if there:
            raise UserError(
                f"--upload {self.upload.shown}: what --out {self.out} stands for was put into {there}; name "
                "another --out"
            )
        if holds:
            raise UserError(
                f"--out {self.out} holds shards, which --upload would make anew: copy them as they are, or name "
                "another --out"
            )

    def _open_upload(self, upload: Upload) -> None:
        there = upload.sizes()  # looked at before what is known here, which other parts may be writing
        if not (self.out / UPLOADED).exists():
            if any(name == INDEX_NAME or SHARD_NAME.fullmatch(name) for name in there):
                raise UserError(
                    f"--upload {upload.shown} holds shards that --out {self.out} knows nothing of: name another "
                    "folder, or remove them"
                )
            with written_whole(self.out / UPLOADED, apart=True) as part:
                part.write_text(f"{upload.shown}\n", "utf-8")
        if INDEX_NAME in there:
            upload.remove(INDEX_NAME)

    def parts(self) -> list[PartOf]:
        """The parts that were begun."""
        folders = (_PART_FOLDER.fullmatch(path.name) for path in self.folder.glob("part-*"))
        return sorted(PartOf(int(found[1]), int(found[2])) for found in folders if found)

    def record_path(self, name: str) -> Path:
        """Where the record of a shard lies."""
        return self.folder / f"{name}.json"

    def missing(self, names: Sequence[str]) -> list[int]:
        """Places of the shards that are not done; the tars that are here are read, as many at a time as are cores."""
        places: list[int] = []
        there = self.upload.sizes() if self.upload is not None else None
        with ThreadPoolExecutor(min(8, usable_cores())) as pool, Progress("look", len(names), "shard") as progress:
            for place, done in enumerate(pool.map(lambda name: self.is_done(name, there), names)):
                if not done:
                    places.append(place)
                progress.update(place + 1)
        return places

    def is_done(self, name: str, there: Mapping[str, int] | None = None) -> bool:
        """Whether a shard was made by this plan, and its tar still has the bytes it had then.

        Args:
            name: of the shard.
            there: sizes of what was uploaded, where shards are; their bytes are not read back.
        """
        record = ShardRecord.read(self.record_path(name))
        if record is None or record.plan != self.plan:
            return False
        if not record.samples:
            return True
        if there is not None:
            return there.get(name) == record.bytes
        try:
            with (self.out / name).open("rb") as file:
                return file_digest(file, "sha256").hexdigest() == record.sha256
        except OSError:
            return False

    def records(self, names: Sequence[str]) -> Iterator[ShardRecord]:
        """The records of shards that are done, one in memory at a time.

        Raises:
            UserError: one cannot be seen from here.
        """
        for name in names:
            record = ShardRecord.read(self.record_path(name))
            if record is None:
                raise UserError(
                    f"{self.record_path(name)} is not there, though {name} was made: --out must be on a disk that "
                    "this machine and all workers share"
                )
            yield record

    def sweep(self, names: Sequence[str] | None = None) -> None:
        """Remove what killed processes left half-written, or did not upload: of these shards, or of all."""
        mine = None if names is None else set(names)
        # Only what a run left that uploads: others' tars are not ours to remove.
        made = (path for path in self.out.glob("*.tar") if self.record_path(path.name).exists())
        left = made if self.upload is not None else ()
        for path in chain(self.out.glob(f"*{PART}"), self.folder.glob(f"*{PART}"), left):
            shard = SHARD_NAME.match(path.name)
            if shard and (mine is None or shard[0] in mine):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the state, once the index is written."""
        self.sweep()
        shutil.rmtree(self.folder, ignore_errors=True)


def refuse_others(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to go on with shards of other settings.

    Raises:
        UserError: naming what differs.
    """
    there = {**_BEFORE, **there}
    differences = [
        f"{name} {_brief(there.get(name))}, now {_brief(here[name])}" for name in here if there.get(name) != here[name]
    ]
    if differences:
        what = "; ".join(differences)
        raise UserError(f"--out {folder} holds shards of other settings ({what}): name another folder, or remove it")


def _brief(value: Any) -> str:
    return f"{value['count']} files ({value['sha256'][:8]})" if isinstance(value, dict) else str(value)
