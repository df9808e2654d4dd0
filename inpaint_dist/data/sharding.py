"""Photos and masks into shards: plan, fan out over processes, write the index last.

The plan fixes which sample goes into which shard before anything is decoded, so that the bytes are the same whatever
the workers. Until the index is written, OUT/.unfinished holds the settings and a record of each shard that is done: the
same command goes on from there, and no other may.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.photos import PhotoError
from inpaint_dist.data.progress import Progress
from inpaint_dist.data.samples import SampleMaker
from inpaint_dist.data.shard_writer import compact_json, write_index
from inpaint_dist.data.sharding_plan import Plan, ShardingConfig, make_plan
from inpaint_dist.data.sharding_workers import Job, JobResult, run_jobs
from inpaint_dist.data.shards import INDEX_NAME, SHARD_NAME, SPLITS, UNFINISHED, ShardError, ShardIndex, shard_name
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import PART, alone_in, usable_cores, written_whole

__all__ = ["ShardingConfig", "ShardingReport", "make_shards"]

REJECTED_NAME = "rejected.jsonl"
LARGEST_MEAN_HOLE = 0.6

_PROBED_MASKS = 256


@dataclass(frozen=True, kw_only=True)
class ShardingReport:
    """What make_shards did."""

    out: Path
    """The folder of shards."""
    train: int
    """Samples of the train split."""
    val: int
    """Samples of the val split."""
    shards: int
    """Tars."""
    bytes: int
    """Bytes of all tars."""
    rejected: int
    """Photos left out; rejected.jsonl names each."""
    copied: int
    """Photos whose JPEG bytes were copied."""
    enlarged: int
    """Photos that were smaller than the size."""
    seconds: float
    """Wall time."""
    notes: tuple[str, ...]
    """What the user should know."""

    def lines(self) -> list[str]:
        """The report in words."""
        made = f"{self.out}: {self.train} train and {self.val} val samples in {self.shards} shards"
        rate = (self.train + self.val + self.rejected) / max(self.seconds, 1e-9)
        lines = [f"{made}, {self.bytes / 1e6:.1f} MB, in {self.seconds:.1f} s ({rate:.0f} photos/s)"]
        if self.copied:
            lines.append(f"{self.copied} photos were JPEGs of this size already: their bytes were copied")
        if self.rejected:
            lines.append(f"{self.rejected} photos were left out: {self.out / REJECTED_NAME} says why")
        return lines + [f"note: {note}" for note in self.notes]


def make_shards(config: ShardingConfig) -> ShardingReport:
    """Make shards of photos and masks; the same command after a kill goes on where it stopped.

    Raises:
        UserError: nothing to make shards of, masks that look inverted, a folder with other shards, a full disk.
    """
    start = time.monotonic()
    plan = make_plan(config)
    _check_holes(config, plan)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        with alone_in(config.out, UserError(f"--out {config.out}: another make_shards is writing there")):
            if _is_finished(config.out, plan.settings):
                return _old_report(config.out, time.monotonic() - start)
            results = _make_missing(config, plan)
            return _finish(config, plan, results, start)
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written ({error.strerror})") from None
    except KeyboardInterrupt:
        raise UserError("stopped; the same command goes on from the shards that are done") from None


def _check_holes(config: ShardingConfig, plan: Plan) -> None:
    """Look at some masks before any work: black on white is the commonest mistake."""
    items = plan.train + plan.val
    own = sorted({number for item in items for number in item.masks or ()})
    numbers = own or range(len(plan.masks))
    maker, ratios, reasons = SampleMaker(config.sample_settings, plan.masks), [], []
    for number in numbers[:: -(-len(numbers) // _PROBED_MASKS)]:
        try:
            ratios.append(float(np.mean(maker.read_mask(number) > 0)))
        except PhotoError as error:
            reasons.append(str(error))
    maker.close()
    if not ratios:
        raise UserError(f"--masks: none can be used; {reasons[0]}")
    mean = sum(ratios) / len(ratios)
    if mean > LARGEST_MEAN_HOLE and not config.allow_large_holes:
        cure = "is --invert-masks right?" if config.invert_masks else "did you mean --invert-masks?"
        raise UsageError(
            f"--masks: on average {mean:.0%} of a mask is hole (white); {cure} --allow-large-holes accepts it"
        )


def _is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds these very shards already.

    Raises:
        UserError: it holds others.
    """
    if not (folder / INDEX_NAME).exists():
        return False
    try:
        indexes = [ShardIndex.load(folder, split) for split in SPLITS]
    except ShardError:
        raise UserError(f"--out {folder} has a damaged {INDEX_NAME}: remove the folder, or name another") from None
    _refuse_others(folder, indexes[0].settings, settings)
    shards = [shard for index in indexes for shard in index.shards]
    return all(_size(folder / shard.name) == shard.bytes for shard in shards)


def _refuse_others(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differences = [
        f"{name} {_brief(there.get(name))}, now {_brief(here[name])}" for name in here if there.get(name) != here[name]
    ]
    if differences:
        what = "; ".join(differences)
        raise UserError(f"--out {folder} holds shards of other settings ({what}): name another folder, or remove it")


def _brief(value: Any) -> str:
    return f"{value['count']} files ({value['sha256'][:8]})" if isinstance(value, dict) else str(value)


def _make_missing(config: ShardingConfig, plan: Plan) -> list[JobResult]:
    """Make the shards that are not done; the results of all, in order."""
    state = config.out / UNFINISHED
    _open_state(config.out, state, plan.settings)
    jobs = _jobs(config, plan)
    results = {job.path.name: result for job in jobs if (result := _done_before(state, job))}
    missing = [job for job in jobs if job.path.name not in results]
    total, left = (sum(len(job.items) for job in some) for some in (jobs, missing))
    workers = config.workers or usable_cores()
    with Progress("shards", total, "photo", done=total - left) as progress:
        run = run_jobs(
            missing, config.sample_settings, plan.masks, workers, lambda done: progress.update(total - left + done)
        )
        for result in run:
            results[result.name] = result
            with written_whole(state / f"{result.name}.json") as part:
                part.write_text(compact_json(asdict(result)))
    return [results[job.path.name] for job in jobs]


def _jobs(config: ShardingConfig, plan: Plan) -> list[Job]:
    jobs: list[Job] = []
    for split, items in (("train", plan.train), ("val", plan.val)):
        for number, first in enumerate(range(0, len(items), config.samples_per_shard)):
            path = config.out / shard_name(split, number)
            jobs.append(Job(path, items[first : first + config.samples_per_shard]))
    return jobs


def _open_state(folder: Path, state: Path, settings: Mapping[str, Any]) -> None:
    """Begin, or go on with, an unfinished folder; sweep what a killed run left half-written.

    Raises:
        UserError: it was begun with other settings, or holds shards of unknown origin.
    """
    known = state / "settings.json"
    if known.exists():
        _refuse_others(folder, json.loads(known.read_text("utf-8")), settings)
    elif not (folder / INDEX_NAME).exists() and any(SHARD_NAME.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(f"--out {folder} has tars without an {INDEX_NAME}: name another folder, or remove them")
    for part in folder.glob(f"*{PART}"):
        if SHARD_NAME.fullmatch(part.name.removesuffix(PART)):
            part.unlink()
    state.mkdir(exist_ok=True)
    with written_whole(known) as part:
        part.write_text(compact_json(settings))
    (folder / INDEX_NAME).unlink(missing_ok=True)  # it may list shards that have gone


def _done_before(state: Path, job: Job) -> JobResult | None:
    """The result of a shard that a run before this one finished, if the tar still has the bytes it had then."""
    try:
        result = json.loads((state / f"{job.path.name}.json").read_text("utf-8"))
        result["rejected"] = [(name, reason) for name, reason in result["rejected"]]
        if result["record"] is not None:
            with job.path.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != result["record"]["sha256"]:
                    return None
        return JobResult(**result)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finish(config: ShardingConfig, plan: Plan, results: Sequence[JobResult], start: float) -> ShardingReport:
    """Write rejected.jsonl, then the index, then clear away the state.

    Raises:
        UserError: no photo of the train split could be used.
    """
    records = [result.record for result in results if result.record is not None]
    photos = [line for result in results for line in result.rejected]
    if not any(record["name"].startswith("train-") for record in records):
        shutil.rmtree(config.out / UNFINISHED)
        raise UserError(f"none of {len(plan.train)} train photos can be used; {photos[0][0]}: {photos[0][1]}")
    bad_masks = sorted({name: reason for result in results for name, reason in result.bad_masks.items()}.items())
    lines = [{"photo": name, "reason": reason} for name, reason in photos]
    lines += [{"mask": name, "reason": reason} for name, reason in bad_masks]
    lines += [{"file": name, "reason": reason} for name, reason in plan.refused]
    with written_whole(config.out / REJECTED_NAME) as part:
        part.write_text("".join(compact_json(line) + "\n" for line in lines))
    made_with = {"opencv": cv2.__version__, "simplejpeg": simplejpeg.__version__}
    write_index(config.out, size=config.size, settings=plan.settings, made_with=made_with, records=records)
    shutil.rmtree(config.out / UNFINISHED)
    train, val = (sum(r["samples"] for r in records if r["name"].startswith(f"{split}-")) for split in SPLITS)
    notes = plan.notes + _notes(plan, results, val=val, bad_masks=len(bad_masks), size=config.size)
    return ShardingReport(
        out=config.out,
        train=train,
        val=val,
        shards=len(records),
        bytes=sum(record["bytes"] for record in records),
        rejected=len(photos),
        copied=sum(result.copied for result in results),
        enlarged=sum(result.enlarged for result in results),
        seconds=time.monotonic() - start,
        notes=tuple(notes),
    )


def _notes(plan: Plan, results: Sequence[JobResult], *, val: int, bad_masks: int, size: int) -> list[str]:
    notes: list[str] = []
    if plan.val and not val:
        notes.append(f"val is empty: none of its {len(plan.val)} photos could be used")
    if plan.refused:
        notes.append(f"{len(plan.refused)} files were not touched: {REJECTED_NAME} says why")
    if bad_masks:
        notes.append(f"{bad_masks} masks could not be used: {REJECTED_NAME} says why")
    if enlarged := sum(result.enlarged for result in results):
        notes.append(f"{enlarged} photos were smaller than {size} pixels and were enlarged")
    hashes: dict[str, list[str]] = {split: [] for split in SPLITS}
    for result in results:
        hashes[result.name.partition("-")[0]] += result.hashes
    if leaked := len(set(hashes["train"]) & set(hashes["val"])):
        notes.append(f"{leaked} photos are in train and in val, byte for byte: scores on val will flatter")
    if twice := len(hashes["train"]) - len(set(hashes["train"])):
        notes.append(f"{twice} photos of train are copies of others, byte for byte")
    return notes


def _old_report(folder: Path, seconds: float) -> ShardingReport:
    indexes = [ShardIndex.load(folder, split) for split in SPLITS]
    shards = [shard for index in indexes for shard in index.shards]
    rejected = (folder / REJECTED_NAME).read_text("utf-8").count('{"photo"') if (folder / REJECTED_NAME).exists() else 0
    return ShardingReport(
        out=folder,
        train=len(indexes[0]),
        val=len(indexes[1]),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        rejected=rejected,
        copied=0,
        enlarged=0,
        seconds=seconds,
        notes=("these very shards were there already: nothing was done (tools/check_shards.py reads them back)",),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
