"""TrainConfig: the parts' own configs composed, checked against each other, to JSON and back."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inpaint_dist import models
from inpaint_dist.data.loader import DataConfig
from inpaint_dist.data.remote import redacted
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.evaluation import METRICS, MetricName
from inpaint_dist.host import parse_json
from inpaint_dist.launch import LaunchConfig
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.models import DiscriminatorConfig, GeneratorConfig, PatchDiscriminatorConfig, SeedAutoencoderConfig
from inpaint_dist.tracking.tracker import TrackingConfig
from inpaint_dist.trainer import TrainerConfig

SECTIONS = ("data", "trainer", "launch", "tracking")
"""Parts whose flags need no prefix: --batch-size and --data.batch-size are the same."""

RESUMABLE = frozenset(
    {
        "recipe", "epochs", "max_steps", "output_dir", "checkpoint_every", "keep_checkpoints", "eval_every",
        "eval_metrics", "best_by", "allow_changed", "overwrite", "dry_run", "data.batch_size", "data.workers",
        "data.val_shards", "data.shards", "data.limit", "data.global_batch_size", "data.max_bad_samples",
        "data.allow_remote", "data.allow_pipe", "data.shard_cache", "data.shard_cache_gb", "launch.cpu",
        "launch.threads", "launch.mixed_precision", "launch.deterministic", "launch.hang_timeout",
        "launch.start_timeout",
        "trainer.gradient_accumulation_steps", "trainer.sync_batchnorm", "trainer.cuda_graphs",
        "trainer.max_skipped_steps", "trainer.max_rollbacks", "objective.perceptual.weights",
        "discriminator.weights",
        "tracking.report_every", "tracking.sample_every", "tracking.report_to", "tracking.run_name",
    }
)  # fmt: skip
"""What may change when a run is resumed. The data themselves and the images of a step over all processes are compared
as what they come to (fingerprint, number), not by these flags; the file of VGG16's weights may lie elsewhere."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    recipe: str = "seed"
    """The recipe that the run started from."""
    output_dir: Path | None = None
    """The run's folder; None: runs/RECIPE. The same command in the same folder goes on where it stopped."""
    epochs: int = 30
    """Times that every training sample is read."""
    max_steps: int | None = None
    """Steps of the run, instead of --epochs."""
    seed: int = 0
    """Of weights, order, masks drawn and mirroring."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; None: a tenth of the run, at most 1000. The last step has one too, and each that
    is the best so far."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the best."""
    eval_every: int | None = None
    """Steps between two evaluations on the validation set; None: a tenth of the run, at most 1000."""
    eval_metrics: tuple[MetricName, ...] = METRICS
    """What the validation set is scored by. lpips_alex, lpips_vgg, fid, kid, p_ids and u_ids need the extra `eval` and
    weights, which are looked for before the first step."""
    best_by: MetricName = "psnr"
    """Which of them decides what are the best weights and checkpoint, which are kept."""
    init_from: Path | None = None
    """A run folder, one of its checkpoints, or a generator.safetensors, whose generator the run starts with."""
    allow_changed: tuple[str, ...] = ()
    """What may differ from the run that the folder holds, which goes on all the same: dataset, global_batch, or a flag
    such as trainer.lr. Never another network."""
    overwrite: bool = False
    """Start anew where the folder holds a run: that run is removed."""
    dry_run: bool = False
    """Build everything, read a batch, say what would be done, and end without writing."""
    overfit_one_batch: bool = False
    """Train on the first batch again and again: a network and a loss that are right rebuild it."""
    generator: GeneratorConfig = field(default_factory=SeedAutoencoderConfig)
    """The network that fills holes."""
    discriminator: DiscriminatorConfig = field(default_factory=PatchDiscriminatorConfig)
    """The network that tells completions from photos."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The losses and their weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards, batches, masks."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Optimisers, average."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Device and precision."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Reports."""

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "checkpoint_every", "keep_checkpoints", "eval_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give at least 1")
        if (name := str(self.run_folder)) != (shown := name.encode(errors="backslashreplace").decode()):
            raise UsageError(f"--output-dir {shown}: holds bytes that are no UTF-8; choose another name")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: give a whole number from 0 to 2^63 - 1")
        if self.best_by not in self.eval_metrics:
            chosen = " ".join(self.eval_metrics) or "(none)"
            raise UsageError(f"--best-by {self.best_by}: not among --eval-metrics {chosen}; name one of these")

        if self.discriminator.sigmoid and self.objective.adversarial.raw_scores:
            loss = type(self.objective.adversarial).__name__.removesuffix("Config")
            raise UsageError(
                f"--discriminator.sigmoid: {loss} wants raw scores, which this discriminator squashes to 0..1: give "
                "--no-discriminator.sigmoid"
            )

        layers = getattr(self.discriminator, "channels", ())
        if self.objective.feature_matching_weight and len(layers) < 2:
            raise UsageError("--objective.feature-matching-weight: give at least two --discriminator.channels to match")

    @property
    def run_folder(self) -> Path:
        """Where the run lives."""
        return self.output_dir or Path("runs") / self.recipe


def interval(asked: int | None, total_steps: int) -> int:
    """Steps between two events: as asked, else a tenth of the run and at most 1000."""
    return asked or max(1, min(1000, total_steps // 10))


def to_json(config: Any) -> Any:
    """A config as plain values; a part that could be one of several names its type under "type".

    It is written into the run: user, password and query of a URL are left out, and so are commands.
    """
    if dataclasses.is_dataclass(config):
        plain = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **plain}
    if isinstance(config, tuple | list):
        return [to_json(item) for item in config]
    return redacted(str(config)) if isinstance(config, Path | str) else config


def from_json(wanted: Any, plain: Any) -> Any:
    """Rebuild what `to_json` wrote.

    Raises:
        UserError: where a value fits nothing, as from another version.
    """
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        values = {key: value for key, value in plain.items() if key != "type"}
        unknown = values.keys() - hints.keys()
        if unknown:
            raise UserError(f"config: {wanted.__name__} has no {', '.join(sorted(unknown))} (another version wrote it)")
        return wanted(**{key: from_json(hints[key], value) for key, value in values.items()})
    origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if isinstance(plain, dict):
            named = {choice.__name__: choice for choice in choices if isinstance(choice, type)}
            if plain.get("type") not in named:
                raise UserError(f"config: type {plain.get('type')!r} is not one of {', '.join(named)}")
            return from_json(named[plain["type"]], plain)
        return from_json(next(c for c in choices if c is not type(None)), plain) if plain is not None else plain
    if origin is tuple:
        item = choices[0]
        return tuple(from_json(item, value) for value in plain)
    return Path(plain) if wanted is Path else plain


def generator_from_json(text: str) -> GeneratorConfig:
    """Rebuild the config of a generator from the metadata of its weights."""
    return from_json(models.GeneratorConfig, parse_json(text))


def shaping(config: TrainConfig, **facts: object) -> dict[str, object]:
    """What makes a run that run, flat: "section.key" → value, with `facts` found at run time among them."""
    flat: dict[str, object] = {}

    def walk(prefix: str, plain: Any) -> None:
        if isinstance(plain, dict):
            for key, value in plain.items():
                walk(f"{prefix}.{key}" if prefix else key, value)
        elif prefix not in RESUMABLE:
            flat[prefix] = plain

    walk("", to_json(config))
    return flat | facts
