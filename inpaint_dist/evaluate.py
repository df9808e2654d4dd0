"""Scoring: `python -m inpaint_dist.evaluate RUN --shards S | --photos DIR --masks DIR | --pack P --photos DIR`.

Under `accelerate launch` the photos are shared among the processes, each scored once. `--photos DIR --masks DIR
--make-pack P` freezes a set, which `--pack P` scores again, exactly, or says what is not as it was.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inpaint_dist import cli
from inpaint_dist.batch import Batch, Image, composite
from inpaint_dist.data.packs import PackedSet, make_pack, pixel_digests
from inpaint_dist.data.pairs import RESIZE, Completions, Pairing, Pairs, Photos, PhotoSet, ValSplit
from inpaint_dist.data.progress import Progress
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.evaluation import (
    ALL_METRICS,
    LEARNED,
    METRICS,
    OVER_SETS,
    Fill,
    Ruler,
    completions,
    measure,
    summarise,
)
from inpaint_dist.host import versions, written_whole
from inpaint_dist.inpainter import Inpainter, WeightsName, weights_file
from inpaint_dist.launch import Launch, LaunchConfig, open_launch
from inpaint_dist.metrics.learned import FEATURES, LPIPS_WEIGHTS
from inpaint_dist.pretrained import INCEPTION, find_pretrained

PACKAGES = (
    "inpaint-dist",
    "torch",
    "torchvision",
    "torchmetrics",
    "torch-fidelity",
    "numpy",
    "opencv-python",
    "simplejpeg",
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored, on what, by what."""

    run: Path | None = None
    """Run folder, one of its checkpoints, or a generator's .safetensors file."""
    outputs: Path | None = None
    """Score a folder of pictures that any other system made, named as the photos, instead of RUN."""
    composite: bool = False
    """Paste --outputs into the photos' holes first; off: they are scored as they are. RUN's always are pasted."""
    shards: Path | None = None
    """Score the val split of a folder of shards, with its own masks, instead of --photos and --masks."""
    photos: Path | None = None
    """Folder of photos."""
    masks: Path | None = None
    """Folder of masks, white (above 127) = hole."""
    pack: Path | None = None
    """Score the photos that a pack lists, all in --photos, with the masks that are in the pack; refused where a file is
    missing or is not the one that the pack was made of."""
    make_pack: Path | None = None
    """Instead of scoring, freeze --photos and --masks, as --pairing, --size and --limit choose, into this new folder:
    names, hashes and the fitted masks, no photo."""
    pairing: Pairing | None = None
    """pool: each photo's mask is drawn by a hash of its key, the same on any machine; name: the mask of its name. None:
    name with --outputs, else pool. A pack has its own."""
    size: int | None = None
    """Pixels of a side that photos and masks are fitted to (short side by averages over areas, centre crop). None: 256,
    or each photo's own size with --outputs, and in a pack paired by name. Shards and packs have their own."""
    limit: int | None = None
    """Score that many photos, spread evenly over the set."""
    metrics: tuple[str, ...] = METRICS
    """Of psnr, ssim, l1, hole_psnr, hole_l1, and, with the extra `eval`, lpips_alex, lpips_vgg, fid, kid, p_ids,
    u_ids; or all."""
    weights: WeightsName = "latest"
    """Of a run folder: the latest weights, or those that scored best on its validation set."""
    out: Path | None = None
    """The JSON to write, with all figures, intervals and what they were measured on; None: print alone."""
    cpu: bool = False
    """Compute on the CPU even where there is a GPU."""
    threads: int | None = None
    """CPU threads of a process for torch; None: usable cores / processes on this machine. On a CPU, equal threads give
    the same JSON."""

    def __post_init__(self) -> None:
        if self.make_pack is not None:
            self._check_making()
        elif (self.run is None) == (self.outputs is None):
            raise UsageError("give RUN or --outputs, or --make-pack")
        if self.pack is not None:
            self._check_pack()
        elif (self.shards is None) == (self.photos is None) or (self.photos is None) != (self.masks is None):
            raise UsageError("give --photos and --masks, or --shards, or --pack and --photos")
        if self.outputs is not None and self.shards is not None:
            raise UsageError("--outputs goes with --photos and --masks, whose names say what belongs together")
        if self.shards is not None and (self.size is not None or self.pairing is not None):
            raise UsageError("--size and --pairing go with --photos: shards have their own")
        if self.composite and self.outputs is None:
            raise UsageError("--composite goes with --outputs: what RUN makes is pasted into the hole anyway")
        if self.pairing == "pool" and self.outputs is not None and self.size is None:
            raise UsageError("--pairing pool fits masks to photos: give a --size")
        for flag in ("size", "limit"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UsageError(f"--{flag} {value}: give at least 1")
        unknown = [name for name in self.metrics if name not in (*ALL_METRICS, "all")]
        if unknown or not self.metrics:
            raise UsageError(f"--metrics {' '.join(unknown)}: choose of {', '.join(ALL_METRICS)}, or all")

    def _check_making(self) -> None:
        given = [name for name in ("run", "outputs", "shards", "pack", "out") if getattr(self, name) is not None]
        given += ["composite"] if self.composite else []
        given += ["metrics"] if self.metrics != METRICS else []
        if given:
            flag = "RUN" if given[0] == "run" else f"--{given[0]}"
            raise UsageError(f"{flag}: --make-pack scores nothing; give it --photos and --masks, and score by --pack")

    def _check_pack(self) -> None:
        if self.photos is None:
            raise UsageError("--pack goes with --photos, the folder of the photos that it lists")
        for flag in ("masks", "shards", "pairing", "size", "limit"):
            if getattr(self, flag) is not None:
                raise UsageError(f"--{flag}: a pack is scored as it is; leave it out, or --make-pack another")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The metrics asked for, in the order of the menu."""
        return ALL_METRICS if "all" in self.metrics else tuple(name for name in ALL_METRICS if name in self.metrics)


class Witness:
    """Photos and masks on their way to be scored: how far it is, and the hashes of their pixels."""

    def __init__(self, pairs: Pairs, launch: Launch, progress: Progress) -> None:
        self._pairs, self._launch, self._progress = pairs, launch, progress
        self._digests = torch.zeros(len(pairs), 32, dtype=torch.uint8)
        self.size = pairs.size

    def __len__(self) -> int:
        return len(self._pairs)

    def batch(self, numbers: Sequence[int], device: torch.device) -> Batch:
        """Some of them."""
        batch = self._pairs.batch(numbers, device)
        self._digests[list(numbers)] = torch.tensor([list(digest) for digest in pixel_digests(batch)]).byte()
        self._progress.update(self._progress.done + len(numbers))
        return batch

    def digests(self) -> list[bytes]:
        """sha256 of the pixels of each photo and its mask, once all ranks have read theirs. Collective."""
        return [row.tobytes() for row in self._launch.sum(self._digests.to(self._launch.device)).cpu().numpy()]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score, and say what was scored on what: the contents of the JSON. Collective.

    Raises:
        UserError: something cannot be read, or does not fit together.
    """
    with open_launch(LaunchConfig(mixed_precision="no", cpu=config.cpu, threads=config.threads)) as launch:
        pairs = _open_pairs(config)
        fill = _open_fill(config, pairs, launch)
        ruler = Ruler(config.chosen, launch.device)
        with Progress("evaluate", len(range(launch.rank, len(pairs), launch.world)), "photo") as progress:
            witness = Witness(pairs, launch, progress)
            measured = measure(witness, fill, ruler, launch)
        digests = witness.digests()
        report = {"figures": summarise(measured, config.chosen), "context": _context(config, pairs, launch)}
        report["context"]["pixels of photos and masks, sha256"] = hashlib.sha256(b"".join(digests)).hexdigest()
        lines = table(report["figures"], config.chosen)
        if isinstance(pairs, PackedSet):
            unlike = pairs.unlike(digests)
            report["context"]["photos decoded unlike the pack"] = len(unlike)
            lines += [_other_pixels(unlike)] if unlike else []
        if launch.is_main:
            sys.stdout.writelines(f"{line}\n" for line in lines)
            _write(config, report)
    return report


def freeze(config: EvaluateConfig) -> None:
    """Make the pack, on one process of all.

    Raises:
        UserError: something cannot be read, or the pack not be written.
    """
    assert config.make_pack is not None
    with open_launch(LaunchConfig(mixed_precision="no", cpu=True, threads=config.threads)) as launch:
        if launch.is_main:
            photos = _open_photos(config)
            made = make_pack(photos, config.make_pack)
            sys.stdout.write(
                f"wrote {config.make_pack}: {len(photos)} photos with a mask each; the pack's sha256 {made}\n"
            )


def _other_pixels(unlike: Sequence[str]) -> str:
    return (
        f"note: {len(unlike)} photos, such as {unlike[0]}, are the pack's files but decode to other pixels here than "
        "where it was made (another version of a decoder): compare the last digits with care"
    )


def _open_pairs(config: EvaluateConfig) -> Photos | ValSplit:
    if config.shards is not None:
        return ValSplit(config.shards, config.limit)
    if config.pack is None:
        return _open_photos(config)
    assert config.photos is not None  # the config sees to it
    return PackedSet(config.pack, config.photos)


def _open_photos(config: EvaluateConfig) -> PhotoSet:
    assert config.photos is not None  # the config sees to it
    assert config.masks is not None
    pairing = config.pairing or ("name" if config.outputs else "pool")
    own = config.outputs is not None or (config.make_pack is not None and pairing == "name")
    size = config.size or (None if own else 256)
    return PhotoSet(config.photos, config.masks, pairing=pairing, size=size, limit=config.limit)


def _open_fill(config: EvaluateConfig, pairs: Photos | ValSplit, launch: Launch) -> Fill:
    if config.run is not None:
        return _open_run(config.run, config, pairs, launch)
    assert isinstance(pairs, Photos)  # the config sees to it
    assert config.outputs is not None
    made: Completions = pairs.completions(config.outputs)
    if config.composite:
        return lambda numbers, batch: composite(made.batch(numbers, launch.device), batch.image, batch.mask)
    return lambda numbers, _: made.batch(numbers, launch.device)


def _open_run(run: Path, config: EvaluateConfig, pairs: Pairs, launch: Launch) -> Fill:
    inpainter = Inpainter.load(run, weights=config.weights, device=launch.device.type)  # pyright: ignore
    multiple, paste = inpainter.size_multiple, completions(inpainter.network, launch)
    refusal = f"{run} takes multiples of {multiple}"
    if pairs.size is not None and pairs.size % multiple:
        raise UserError(f"pictures of {pairs.size} pixels: {refusal}")
    if pairs.size is not None and (own := getattr(inpainter.network, "fixed_size", pairs.size)) != pairs.size:
        raise UserError(f"pictures of {pairs.size} pixels: {run} is made for {own}; give --size {own}")

    def fill(numbers: Sequence[int], batch: Batch) -> Image:
        height, width = batch.image.shape[2:]
        if height % multiple or width % multiple:  # where each photo has its own size
            raise UserError(f"{batch.keys[0]} has {width}x{height} pixels: {refusal}; --make-pack with a --size")
        return paste(numbers, batch)

    return fill


def table(figures: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    """The figures to be read: a line for all photos and for each bucket, with what makes FID unfit."""
    lines = [f"{'hole ratio':<12}{'photos':>8}" + "".join(f"{name:>12}" for name in metrics)]
    for bucket, part in figures.items():
        cells = [_cell(part.get(name)) for name in metrics]
        lines.append(f"{bucket:<12}{part['photos']:>8}" + "".join(f"{cell:>12}" for cell in cells))
    whole = figures["all"]
    intervals = [
        f"{name} {part['low']:.4f} to {part['high']:.4f}" for name in metrics if "low" in (part := whole.get(name, {}))
    ]
    lines.append(f"95 % intervals over all photos: {', '.join(intervals)}" if intervals else "")
    if whole.get("fid", {}).get("too few photos"):
        lines.append(
            f"note: FID of no more than {FEATURES:,} photos is biased upwards, the more the fewer: compare it on this "
            "very set alone, and read KID"
        )
    if whole.get("u_ids", whole.get("p_ids", {})).get("too few photos"):
        lines.append(
            f"note: a linear classifier of {FEATURES:,} features tells any two sets of no more than {FEATURES // 2:,} "
            "photos apart: P-IDS and U-IDS say nothing of so few"
        )
    return [line for line in lines if line]


def _cell(part: dict[str, Any] | None) -> str:
    value = None if part is None else part.get("mean", part.get("value"))
    return "-" if value is None else f"{value:.4f}"


def _context(config: EvaluateConfig, pairs: Photos | ValSplit, launch: Launch) -> dict[str, Any]:
    """What was scored, on what, by what, in names that mean something on another machine."""
    told: dict[str, Any] = {"precision": "float32", "device": launch.device.type, "threads": launch.threads}
    if config.run is not None:
        file = weights_file(config.run, config.weights)
        told |= {"scored": file.name, "weights, sha256": _sha256(file), "pictures": "completions pasted into the hole"}
    else:
        pasted = "pasted into the hole" if config.composite else "as they are"
        told |= {"scored": f"outputs in {config.outputs.resolve().name}", "pictures": pasted}  # pyright: ignore
    if isinstance(pairs, ValSplit):
        told |= {"shards": config.shards.resolve().name, "split": "val", "fingerprint": pairs.fingerprint}  # pyright: ignore
    elif isinstance(pairs, PackedSet):
        told |= {"pack": pairs.pack.resolve().name, "pack, sha256": pairs.hash, "pairing": pairs.pairing}
    else:
        told |= {"photos": config.photos.resolve().name, "masks": config.masks.resolve().name}  # pyright: ignore
        told["pairing"] = pairs.pairing
    told["size"] = "each photo's own" if pairs.size is None else pairs.size
    told["resize"] = "none" if pairs.size is None else RESIZE
    told["metric weights, sha256"] = _metric_weights(config.chosen)
    told["versions"] = versions(PACKAGES)
    return told


def _metric_weights(metrics: Sequence[str]) -> dict[str, str]:
    wanted = [LPIPS_WEIGHTS[network] for name, network in LEARNED.items() if name in metrics]
    wanted += [INCEPTION] if set(OVER_SETS) & set(metrics) else []
    return {what.file: _sha256(find_pretrained(what)) for what in wanted}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(config: EvaluateConfig, report: dict[str, Any]) -> None:
    if config.out is None:
        return
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(config.out) as part:
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {config.out}: cannot be written ({error})") from error
    sys.stdout.write(f"wrote {config.out}\n")


def parse(argv: Sequence[str]) -> EvaluateConfig:
    """Read RUN and flags."""
    return cli.parse(
        EvaluateConfig,
        argv,
        prog="python -m inpaint_dist.evaluate",
        description="Score a generator, or any system's pictures, on photos with holes; or freeze such a set.",
        positional=("run",),
    )


def main(argv: Sequence[str]) -> int:
    """Parse, and score or freeze."""
    config = parse(argv)
    if config.make_pack is not None:
        freeze(config)
    else:
        evaluate(config)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
