"""Training: `accelerate launch -m inpaint_dist.train [RECIPE] [flags]`.

Exit codes: 0 done, 1 failed, 2 wrong flags, 75 stopped by SIGTERM, SIGINT or SIGUSR1 (the same command goes on).
"""

from contextlib import ExitStack, suppress

from inpaint_dist.pulse import PULSE
from inpaint_dist.stopping import listening

if __name__ == "__main__":
    PULSE.begin()
    process = ExitStack()  # left open: a signal means the same to the very end
    process.enter_context(listening())  # before the imports, which take seconds

import difflib
import os
import sys
from collections.abc import Sequence

import torch
from torch import nn

from inpaint_dist import cli
from inpaint_dist.batch import check
from inpaint_dist.config import SECTIONS, TrainConfig, interval, shaping
from inpaint_dist.data.sources import Place, Sources, open_sources
from inpaint_dist.errors import EXIT_PREEMPTED, UsageError, UserError
from inpaint_dist.evaluation import OVER_SETS, Ruler
from inpaint_dist.launch import Launch, open_launch
from inpaint_dist.models.blocks import batch_norms
from inpaint_dist.models.global_discriminator import MinibatchDeviation
from inpaint_dist.recipes import RECIPES
from inpaint_dist.run import Run
from inpaint_dist.run_folder import DATASET, GLOBAL_BATCH, Start, find_start, prepare
from inpaint_dist.tracking.tracker import LOG
from inpaint_dist.trainer import Trainer, count_parameters
from inpaint_dist.watch import Watch
from inpaint_dist.weights import load_into, read_generator


def train(config: TrainConfig) -> None:
    """Run a training to its end, from its beginning or from its newest checkpoint.

    Raises:
        Preempted: a signal asked for the run to stop, and it has, with a checkpoint.
    """
    with listening() as stop, open_launch(config.launch, stop.launchers_end) as launch, ExitStack() as held:
        stop.stage = "starting"
        PULSE.begin()
        limits = config.launch.hang_timeout, config.launch.start_timeout
        watch = held.enter_context(Watch(*limits, rank=launch.rank, world=launch.world, stop=stop))
        sources = open_data(config, launch)
        shape = shaping(config, **{DATASET: sources.fingerprint, GLOBAL_BATCH: sources.loader.global_batch})
        start = find_start(config, shape, launch, held)
        ruler = open_ruler(config, launch, sources)
        trainer = build_trainer(config, launch, sources, start)
        notes = [*start.notes, *describe(config, launch, sources, trainer)]
        if config.dry_run or start.step >= sources.total_steps:
            say_and_leave(config, launch, start, sources, notes)
            return
        prepare(config, shape, start, launch, held)
        watch.log = config.run_folder / LOG
        with Run(config, sources, trainer, ruler, launch, start, stop) as run:
            run.say(*notes)
            run.restore()
            stop.stage = "stepping"
            for step, batch in run.batches():
                losses = trainer.step(batch, measure=run.is_due("report", step))
                if run.is_due("report", step):
                    run.report(step, losses)
                if run.is_due("draw", step):
                    run.draw(step)
                if run.is_due("evaluate", step):
                    run.evaluate(step)
                if run.is_due("save", step):
                    run.save(step)
                run.stop_if_asked(step)
            run.finish()


def open_data(config: TrainConfig, launch: Launch) -> Sources:
    """Open what the run reads."""
    return open_sources(
        config.data,
        Place(launch.rank, launch.world, launch.device),
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
        parts=config.trainer.gradient_accumulation_steps,
    )


def open_ruler(config: TrainConfig, launch: Launch, sources: Sources) -> Ruler:
    """Load what the validation set is scored by; where there is none, nothing.

    Raises:
        UsageError: where a metric's package or weights are missing, or it needs more photos.
    """
    photos = len(sources.validation) if sources.validation is not None else 0
    if photos == 1 and (over_sets := set(OVER_SETS) & set(config.eval_metrics)):
        raise UsageError(f"--eval-metrics {' '.join(sorted(over_sets))}: needs 2 validation photos at least")
    try:
        return Ruler(config.eval_metrics if photos else (), launch.device)
    except UserError as error:
        raise UsageError(f"--eval-metrics: {error}") from None


def build_trainer(config: TrainConfig, launch: Launch, sources: Sources, start: Start) -> Trainer:
    """Build the networks from the seed, or from --init-from, the same on every rank, and what steps them.

    Raises:
        UserError: where the pictures do not fit the generator, or the weights to start from do not.
    """
    torch.manual_seed(config.seed)
    generator, discriminator = config.generator.build(), config.discriminator.build()
    ranks = 1 if config.trainer.sync_batchnorm else launch.world
    images = sources.loader.global_batch // (ranks * config.trainer.gradient_accumulation_steps)
    _refuse_what_does_not_run(generator, images, sources.size, generator.size_multiple, discriminator.smallest_size)
    if sources.size < (least := 2 ** (config.objective.reconstruction.scales - 1)):
        raise UsageError(
            f"--objective.reconstruction.scales: pictures of {sources.size} pixels have no size of {least}"
        )
    if config.init_from is not None and start.checkpoint is None:
        _, weights, _ = read_generator(config.init_from)
        load_into(generator, weights, config.init_from)
    return Trainer(
        config.trainer,
        generator,
        discriminator,
        config.objective,
        launch,
        total_steps=sources.total_steps,
        seed=config.seed,
    )


def _refuse_what_does_not_run(generator: nn.Module, images: int, size: int, multiple: int, smallest: int) -> None:
    """Look whether the networks take `images` pictures of `size` pixels at once.

    `multiple` is what the generator halves to a whole number, `smallest` the least that the discriminator scores.

    Raises:
        UsageError: where they halve them too often, or batch norm would see a single number.
    """
    if size % multiple:
        raise UsageError(
            f"pictures of {size} pixels do not fit the generator, which takes multiples of {multiple}: make "
            "shards of such a --size, or give it fewer levels"
        )
    if (own := getattr(generator, "fixed_size", size)) != size:
        raise UsageError(
            f"pictures of {size} pixels do not fit the generator, which is made for {own}: give --generator.size {size}"
        )
    if size < smallest:
        raise UsageError(
            f"pictures of {size} pixels are too small for the discriminator, which needs {smallest}: make shards of a "
            "larger --size, or give a discriminator that halves them less often (its --discriminator.channels or "
            "--discriminator.halvings)"
        )
    deepest = getattr(generator, "deepest", multiple)
    if batch_norms(generator) and images * (size // deepest) ** 2 < 2:
        raise UsageError(
            "the generator's batch norm would see a single number at its deepest level: give a larger --batch-size, or "
            "fewer --generator.channels"
        )


def describe(config: TrainConfig, launch: Launch, sources: Sources, trainer: Trainer) -> list[str]:
    """What is about to run, in a few lines."""
    total, parts = sources.loader.global_batch, config.trainer.gradient_accumulation_steps
    precision = {"no": "float32"}.get(launch.precision, launch.precision)
    networks = (trainer.generator, trainer.discriminator)
    named = ", ".join(f"{type(net).__name__} of {count_parameters(net.parameters()):,}" for net in networks)
    saved_every = interval(config.checkpoint_every, sources.total_steps)
    lines = [
        *sources.notes,
        f"recipe {config.recipe}: {named} parameters",
        f"batch: {total} a step = {launch.world} process{'es' * (launch.world > 1)} x {total // launch.world}"
        + (f" in {parts} parts" if parts > 1 else "")
        + f"; {sources.total_steps:,} steps on {launch.device.type} in {precision}, threads: {launch.threads}",
        f"run folder {config.run_folder}: a checkpoint each {saved_every} steps, from which the same command goes on",
    ]
    varies = any(isinstance(module, MinibatchDeviation) for module in trainer.discriminator.modules())
    if varies and launch.world * parts > 1:
        lines.append(
            "note: the discriminator's minibatch deviation sees the images of each rank and part alone, so this "
            "differs from one process"
        )
    if any(batch_norms(network) for network in networks):
        if parts > 1:
            lines.append("note: batch norm sees each part alone, so this is not the same as one larger batch")
        if launch.world > 1 and not config.trainer.sync_batchnorm:
            lines.append("note: batch norm sees each rank's images alone, so this differs from one process")
        elif launch.world > 1 and config.objective.r1_weight and batch_norms(trainer.discriminator):
            lines.append(
                "note: with R1 the discriminator's batch norm sees each rank's images alone, so this differs from one "
                "process"
            )
    return lines


def say_and_leave(config: TrainConfig, launch: Launch, start: Start, sources: Sources, notes: Sequence[str]) -> None:
    """Say what would be done, or that it is done already."""
    if config.dry_run:
        check(sources.first())
        bad = sources.loader.bad
        bad.agree(launch.gather(bad.new))
        bad.check()
        notes = [*notes, f"dry run: {sources.total_steps - start.step:,} steps would run in {config.run_folder}"]
    else:
        notes = [
            *notes,
            f"{config.run_folder}: this run is complete ({start.step:,} steps); more --epochs go on with it, "
            "--overwrite starts it anew, --output-dir starts another",
        ]
    if launch.is_main:
        sys.stdout.writelines(f"{line}\n" for line in notes)


def parse(argv: Sequence[str]) -> TrainConfig:
    """Read [RECIPE] and flags; without a recipe, the seed.

    Raises:
        UsageError: for a recipe that is not there.
    """
    name, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("seed", argv)
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"recipe {name!r}: {hint}The recipes are {', '.join(RECIPES)}")
    return cli.parse(
        RECIPES[name],
        flags,
        prog=f"accelerate launch -m inpaint_dist.train {name}",
        description=f"Train a GAN that fills holes. Recipes: {', '.join(RECIPES)}; flags change the recipe's values.",
        sections=SECTIONS,
        fixed=("recipe",),
    )


def main(argv: Sequence[str]) -> int:
    """Parse and train."""
    train(parse(argv))
    return 0


if __name__ == "__main__":
    code = cli.run(main)
    if code == EXIT_PREEMPTED:  # whoever asked for it does not wait until the interpreter is taken down
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code)
