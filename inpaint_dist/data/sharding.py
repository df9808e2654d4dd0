"""Photos and masks into shards: plan, fan out over processes, write the index last.

The plan fixes which sample goes into which shard before anything is decoded, so that the bytes are the same whatever
the workers. Until the index is written, OUT/.unfinished holds the settings and a record of each shard that is done: the
same command goes on from there, and no other may.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import simplejpeg

from inpaint_dist.data.opencv import cv2
from inpaint_dist.data.photos import PhotoError
from inpaint_dist.data.progress import Progress
from inpaint_dist.data.samples import SampleMaker
from inpaint_dist.data.shard_writer import compact_json, write_index_lines
from inpaint_dist.data.sharding_cluster import run_on_cluster
from inpaint_dist.data.sharding_plan import Items, Plan, ShardingConfig, make_plan
from inpaint_dist.data.sharding_report import REJECTED_NAME, PartReport, ShardingReport, Total, notes_on
from inpaint_dist.data.sharding_state import PartOf, Unfinished, refuse_others
from inpaint_dist.data.sharding_workers import Job, run_jobs
from inpaint_dist.data.shards import FORMAT, INDEX_NAME, SPLITS, ShardError, ShardIndex, shard_name
from inpaint_dist.data.upload import Upload
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.host import PART, alone_in, usable_cores, written_whole

__all__ = ["PartReport", "ShardingConfig", "ShardingReport", "make_shards"]

MADE_WITH = {"opencv": cv2.__version__, "simplejpeg": simplejpeg.__version__}
"""The libraries whose versions decide the bytes."""

LARGEST_MEAN_HOLE = 0.6

_PROBED_MASKS = 256


def make_shards(config: ShardingConfig) -> ShardingReport | PartReport:
    """Make shards of photos and masks; the same command after a kill goes on where it stopped.

    What is there already is known by the settings and by names and sizes in bytes of photos and masks, not by their
    contents.

    Raises:
        UserError: nothing to make shards of, masks that look inverted, a folder with other shards, a full disk.
    """
    start = time.monotonic()
    plan = make_plan(config)
    _check_holes(config, plan)
    taken = UserError(f"--out {config.out}: another make_shards is writing there")
    upload = Upload(config.upload) if config.upload is not None else None
    if upload is not None and upload.folder is not None and upload.folder.resolve() == config.out.resolve():
        raise UsageError("--upload and --out: are one folder; leave --upload out")
    state = Unfinished(config.out.absolute(), plan.settings, MADE_WITH, upload)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        with alone_in(config.out, taken, shared=config.share is not None):
            state.refuse_another_place()
            if _is_finished(config.out, plan.settings, upload):
                state.clear()  # a run that was killed after its index may have left some
                return _old_report(config.out, time.monotonic() - start, upload)
            jobs = Jobs(state, plan, config.samples_per_shard)
            with alone_in(state.open(config.share), taken):
                if config.share is not None:
                    return _make_part(config, plan, state, jobs, config.share)
                if config.merge:
                    _refuse_missing(config, state, jobs)
                else:
                    _make_missing(config, plan, state, jobs)
                return _finish(config, plan, state, jobs, start)
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written ({error.strerror})") from None
    except KeyboardInterrupt:
        raise UserError("stopped; the same command goes on from the shards that are done") from None


class Jobs(Sequence[Job]):
    """The shards to make, split by split; the list of a shard's photos is made when the shard is asked for."""

    def __init__(self, state: Unfinished, plan: Plan, samples: int, chosen: Sequence[tuple[str, int]] | None = None):
        self._state, self._plan, self._samples = state, plan, samples
        self._items: dict[str, Items] = {"train": plan.train, "val": plan.val}
        everything = [
            (split, number) for split, items in self._items.items() for number in range(-(-len(items) // samples))
        ]
        self.chosen = everything if chosen is None else chosen

    def only(self, places: Iterable[int]) -> "Jobs":
        """Some of them, by their places."""
        return Jobs(self._state, self._plan, self._samples, [self.chosen[place] for place in places])

    @property
    def names(self) -> list[str]:
        """The shards' file names."""
        return [shard_name(*one) for one in self.chosen]

    @property
    def photos(self) -> int:
        """Photos of all of them."""
        return sum(
            min(self._samples, len(self._items[split]) - number * self._samples) for split, number in self.chosen
        )

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, place: int) -> Job: ...
    @overload
    def __getitem__(self, place: slice) -> list[Job]: ...
    def __getitem__(self, place: int | slice) -> Job | list[Job]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        split, number = self.chosen[place]
        items = self._items[split][number * self._samples : (number + 1) * self._samples]
        name = shard_name(split, number)
        return Job(self._state.out / name, items, self._state.record_path(name), self._state.plan, self._state.upload)


def _check_holes(config: ShardingConfig, plan: Plan) -> None:
    """Look at some masks before any work: black on white is the commonest mistake."""
    own = sorted({number for items in (plan.train, plan.val) for masks in items.masks or () for number in masks})
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


def _is_finished(folder: Path, settings: Mapping[str, Any], upload: Upload | None) -> bool:
    """Whether the folder, or the place that they are uploaded to, holds these very shards already.

    Raises:
        UserError: it holds others.
    """
    if not (folder / INDEX_NAME).exists():
        return False
    try:
        indexes = [ShardIndex.load(folder, split) for split in SPLITS]
    except ShardError:
        raise UserError(f"--out {folder} has a damaged {INDEX_NAME}: remove the folder, or name another") from None
    refuse_others(folder, indexes[0].settings, settings)
    shards = [shard for index in indexes for shard in index.shards]
    if upload is not None:
        there = upload.sizes()
        return INDEX_NAME in there and all(there.get(shard.name) == shard.bytes for shard in shards)
    return all(_size(folder / shard.name) == shard.bytes for shard in shards)


def _make_missing(config: ShardingConfig, plan: Plan, state: Unfinished, jobs: Jobs) -> int:
    """Make the shards that are not done; returns how many."""
    state.sweep(jobs.names)
    missing = jobs.only(state.missing(jobs.names))
    total, left = jobs.photos, missing.photos
    with Progress("shards", total, "photo", done=total - left) as progress:

        def on_photos(done: int) -> None:
            progress.update(total - left + done)

        if config.executor == "dask" and len(missing):
            run = run_on_cluster(missing, config.sample_settings, plan.masks, config.scheduler or "", on_photos)
        else:
            workers = config.workers or usable_cores()
            run = run_jobs(missing, config.sample_settings, plan.masks, workers, on_photos)
        for _ in run:  # each has left its record
            pass
    return len(missing)


def _make_part(config: ShardingConfig, plan: Plan, state: Unfinished, jobs: Jobs, part: PartOf) -> PartReport:
    """Every N-th shard: of both splits some, and as many as the other parts."""
    own = jobs.only(range(part.number - 1, len(jobs), part.parts))
    made = _make_missing(config, plan, state, own)
    return PartReport(out=config.out, part=part, made=made, shards=len(own))


def _refuse_missing(config: ShardingConfig, state: Unfinished, jobs: Jobs) -> None:
    """Raises UserError where not all shards are made, naming those to make again."""
    parts = {part.parts for part in state.parts()}
    missing = state.missing(jobs.names)
    if not missing:
        return
    some = ", ".join(jobs.names[place] for place in missing[:3]) + (", …" if len(missing) > 3 else "")
    again = "the command without --merge makes them"
    if parts:
        count = max(parts)
        numbers = sorted({place % count + 1 for place in missing})
        again = f"run --part {', '.join(f'{number}/{count}' for number in numbers[:8])} again"
        again += f" and {len(numbers) - 8} others" if len(numbers) > 8 else ""
    raise UserError(f"--merge: {len(missing)} of {len(jobs)} shards in {config.out} are not made ({some}): {again}")


def _finish(config: ShardingConfig, plan: Plan, state: Unfinished, jobs: Jobs, start: float) -> ShardingReport:
    """Write rejected.jsonl, then the index, then clear away the state.

    Raises:
        UserError: no photo of the train split could be used.
    """
    total = Total()
    with written_whole(config.out / REJECTED_NAME) as part, part.open("w", encoding="utf-8") as file:
        for record in state.records(jobs.names):
            total.add(record)
            file.writelines(_json_line(photo=name, reason=reason) for name, reason in record.rejected)
        file.writelines(_json_line(photo=name, reason=reason) for name, reason in plan.copies)
        file.writelines(_json_line(mask=name, reason=reason) for name, reason in sorted(total.bad_masks.items()))
        file.writelines(_json_line(file=name, reason=reason) for name, reason in plan.refused)
    if not total.samples["train"]:
        (config.out / REJECTED_NAME).unlink()
        state.clear()
        name, reason = total.first_rejected
        raise UserError(f"none of {len(plan.train)} train photos can be used; {name}: {reason}")
    splits = {split: {"shards": total.shards[split], "samples": total.samples[split]} for split in SPLITS}
    head = {"format": FORMAT, "size": config.size, "splits": splits, "settings": plan.settings, "made_with": MADE_WITH}
    lines = (record.line for record in state.records(jobs.names) if record.line)
    write_index_lines(config.out, head, lines)
    if state.upload is not None:
        _refuse_lost(state, state.upload, jobs)
        for name in (REJECTED_NAME, INDEX_NAME):
            state.upload.put(config.out / name)
        plan.notes.append(
            f"all of it lies in {state.upload.shown}: train with --shards {state.upload.shown} --allow-remote"
        )
    state.clear()
    return ShardingReport(
        out=config.out,
        train=total.samples["train"],
        val=total.samples["val"],
        shards=total.shards.total(),
        bytes=total.bytes,
        rejected=total.rejected + len(plan.copies),
        copied=total.copied,
        enlarged=total.enlarged,
        seconds=time.monotonic() - start,
        notes=tuple(plan.notes + notes_on(plan, total, config.size)),
    )


def _refuse_lost(state: Unfinished, upload: Upload, jobs: Jobs) -> None:
    """Look whether all shards are where they were put, before an index says so; and remove what was left half-written.

    Raises:
        UserError: naming those that are not.
    """
    there = upload.sizes()
    lost = [
        record.name for record in state.records(jobs.names) if record.samples and there.get(record.name) != record.bytes
    ]
    if lost:
        some = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
        raise UserError(
            f"--upload {upload.shown}: {len(lost)} of {len(jobs)} shards are not there although they were put there "
            f"({some}): it must be one place for all workers, and nobody else may write to it; the same command makes "
            "them again"
        )
    for name in there:
        if name.endswith(PART):
            upload.remove(name)


def _json_line(**fields: str) -> str:
    return compact_json(fields) + "\n"


def _old_report(folder: Path, seconds: float, upload: Upload | None) -> ShardingReport:
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
        notes=(
            "shards of photos and masks of these names and sizes were there already: nothing was done; a file that was "
            "changed and kept both is not noticed: remove the folder, or name another --out",
            f"tools/check_shards.py {f'{upload.shown} --allow-remote ' if upload else ''}reads the shards back",
        ),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
