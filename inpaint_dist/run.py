"""A run under way: where it reports, draws, evaluates and saves. Every rank holds one and calls the same methods."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from inpaint_dist import checkpoint
from inpaint_dist.batch import Batch, check, composite, image_to_uint8, masked
from inpaint_dist.checkpoint import Checkpoint
from inpaint_dist.config import TrainConfig, interval, shaping, to_json
from inpaint_dist.data.sources import Sources
from inpaint_dist.errors import UserError
from inpaint_dist.evaluation import LOWER_IS_BETTER, EvaluationFailed, Ruler, evaluate
from inpaint_dist.faults import Fault, NotFinite
from inpaint_dist.launch import Launch, Vote
from inpaint_dist.pulse import PULSE
from inpaint_dist.run_folder import (
    CHECKPOINTS,
    CONFIG,
    DATASET,
    FAULTS,
    GLOBAL_BATCH,
    Start,
    describe_run,
    newest_in_health,
    note_faults,
    preempted,
    read_checkpoint,
    understood,
)
from inpaint_dist.saving import Snapshot, Writer
from inpaint_dist.stopping import Stop
from inpaint_dist.tracking.health import Health
from inpaint_dist.tracking.meter import Meter
from inpaint_dist.tracking.tracker import NullTracker, Tracker
from inpaint_dist.trainer import Trainer, count_parameters
from inpaint_dist.weights import BEST, GENERATOR, export_generator

GRID_ROWS = 6
BAD_SAMPLES = "data/bad_samples"
"""Training samples that could not be read so far, over all ranks, each counted once."""


class Run:
    """What happens around the steps."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Sources,
        trainer: Trainer,
        ruler: Ruler,
        launch: Launch,
        start: Start,
        stop: Stop,
    ) -> None:
        self.ruler, self.stop, self._vote = ruler, stop, Vote(launch)
        self.config, self.sources, self.trainer, self.launch, self.start = config, sources, trainer, launch, start
        self.folder, self.total = config.run_folder, sources.total_steps
        self.shape = shaping(config, **{DATASET: sources.fingerprint, GLOBAL_BATCH: sources.loader.global_batch})
        self.scores: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.passed_over = 0
        """Batches that were left out, because the run failed at them and went back to before them."""
        self._returns: Counter[Path | None] = Counter()
        self._last_fault: Fault | None = None
        self.tracker = self._open_tracker() if launch.is_main else NullTracker()
        self.meter = Meter(sources.loader.global_batch, self.total)
        self.health = Health(self.total)
        self._writer = Writer()
        self._shown: Batch | None = None
        self.every = {
            "report": config.tracking.report_every,
            "draw": config.tracking.sample_interval(self.total),
            "evaluate": interval(config.eval_every, self.total),
            "save": interval(config.checkpoint_every, self.total),
        }

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close what is reported to, with how the run ended."""
        if error is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            self._tell_failed_saves(wait=True)
            self.tracker.message(f"stopped: {str(error) or ('interrupted' if interrupted else kind)}")
            self.tracker.close("interrupted" if interrupted else "failed")
        else:
            self.tracker.close("finished")

    def say(self, *lines: str) -> None:
        """Tell the user, once."""
        for line in lines:
            self.tracker.message(line)

    def restore(self) -> None:
        """Go back to the checkpoint that the run starts from, if there is one."""
        if (saved := read_checkpoint(self.start.checkpoint)) is None:
            return
        with understood(self.start.checkpoint):
            self._load(saved)
            self.sources.loader.bad.load_state(saved.state.get("bad_samples", []))
        self.sources.loader.bad.check()
        kind = self.config.trainer.lr_schedule
        if (before := saved.state["total_steps"]) != self.total and kind != "constant":
            self.say(
                f"note: {self.total:,} steps instead of {before:,}: the {kind} schedule goes on as for the new length: "
                "not the same as one run of that length"
            )

    def _load(self, saved: Checkpoint) -> None:
        self.trainer.load_state(saved.tensors, saved.state["trainer"])
        self.passed_over = saved.state.get("passed_over", 0)
        if "health" in saved.state:
            self.health.load_state(saved.state["health"])
        if saved.state["validation"] == self._validation_fingerprint():
            self.scores, self.best = saved.state["scores"], saved.state["best"]

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """The steps to do, counted from 1, each with this rank's part of its global batch.

        After too many skipped steps in a row they go on from the newest checkpoint.

        Raises:
            NotFinite: where going back did not help, or there is nothing to go back to.
        """
        start = self.start.step
        while start < self.total:
            PULSE.enter("data", start + 1)
            for step, batch in self._batches_from(start):
                if self._shown is None:
                    check(batch)
                    self._shown = self._choose_shown(batch)
                PULSE.enter("step")
                yield step, batch
                if self.trainer.faults.are_known and self.is_stuck():
                    break
                PULSE.enter("data", step + 1)
            start = self._go_back() if self.is_stuck() else self.total

    def _batches_from(self, start: int) -> Iterator[tuple[int, Batch]]:
        if self.config.overfit_one_batch:
            batches = repeat(self.sources.first(), self.total - start)
        else:
            batches = self.sources.loader.batches(start + self.passed_over, self.total + self.passed_over)
        loader = self.sources.loader
        return enumerate(self.meter.waiting(batches, lambda: getattr(loader, "device_behind", 0.0)), start + 1)

    def is_stuck(self) -> bool:
        """Tell of the steps skipped since the last look; whether they are too many in a row to go on. Collective."""
        faults = self.trainer.faults.look()
        if faults:
            self._last_fault = faults[-1]
            self._write(lambda: note_faults(self.folder / FAULTS, faults))
            more = f", the first of {len(faults)} such steps" if len(faults) > 1 else ""
            self.say(f"skipped: {faults[0]}{more}; nothing moved, {FAULTS} names the samples")
        return self.trainer.faults.stuck_at is not None

    def _go_back(self) -> int:
        """Return to the newest checkpoint, and to the photos after those that the run failed at. Returns its step."""
        self._tell_failed_saves(wait=True)
        failed_at, fault, limit = self.trainer.faults.stuck_at, self._last_fault, self.config.trainer.max_skipped_steps
        where = newest_in_health(self.folder / CHECKPOINTS) if self.launch.is_main else None
        path, notes = cast("tuple[Path | None, list[str]]", self.launch.share(where))
        self.say(*notes)
        saved = read_checkpoint(path)
        self._returns[path] += 1
        if failed_at is None or saved is None or self._returns[path] > self.config.trainer.max_rollbacks:
            tried = f"going back to {path} did not help" if path else "there is no checkpoint to go back to"
            raise NotFinite(
                f"{fault}; so it is for {limit + 1} step{'s' * (limit > 0)} in a row, and {tried} ({FAULTS} names the "
                "samples): lower --lr, set --clip-grad 1 or try --mixed-precision no, with --allow-changed trainer.lr "
                "trainer.clip_grad"
            )
        passed_over = failed_at + self.passed_over - saved.step
        self._load(saved)
        self.passed_over = passed_over
        self.tracker.go_back(saved.step)
        self.say(
            f"{limit + 1} steps in a row were skipped: back to {path}, and on with the photos after those of step "
            f"{failed_at} (return {self._returns[path]} of {self.config.trainer.max_rollbacks} to there)"
        )
        return saved.step

    def is_due(self, event: str, step: int) -> bool:
        """Whether it is time to "report", "draw", "evaluate" or "save": every so many steps, and at the last one."""
        if event == "save" and self.best.get("step") == step:
            return True  # the best weights so far are kept
        first = event == "report" and step == 1
        return first or step % self.every[event] == 0 or step == self.total

    def report(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Read the losses, of all ranks, and write them down."""
        PULSE.enter("report")
        if self.is_stuck():
            return
        self._tell_failed_saves(wait=False)
        self._keep_folder()
        bad = self.sources.loader.bad
        met = torch.tensor(float(len(bad.new)), device=self.launch.device)
        values = self.trainer.read({**losses, BAD_SAMPLES: met}) | self.meter.read(step)
        if values[BAD_SAMPLES]:
            self._agree_on_bad_samples()
        values[BAD_SAMPLES] = len(bad)
        if self.trainer.faults.skipped:
            values["skipped_steps"] = self.trainer.faults.skipped
        if self.launch.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated(self.launch.device) / 2**30
        self.tracker.report(step, values)
        self.say(*(f"health: {sentence}" for sentence in self.health.report(step, values)))
        self.tracker.plot()
        self.meter.skip()

    def draw(self, step: int) -> None:
        """Draw photo, masked, prediction and composite of fixed samples, with the averaged weights."""
        PULSE.enter("draw")
        if self.is_stuck():
            return
        generator, shown = self.trainer.averaged(), self._shown
        if not self.launch.is_main or shown is None:
            return
        with torch.inference_mode(), self.launch.autocast():
            prediction = generator(masked(shown.image, shown.mask), shown.mask)
        columns = {
            "photo": shown.image,
            "masked": masked(shown.image, shown.mask),
            "prediction": prediction,
            "composite": composite(prediction, shown.image, shown.mask),
        }
        pixels = [(title, image_to_uint8(image).cpu().numpy()) for title, image in columns.items()]
        self.tracker.samples(step, pixels)
        self.meter.skip()

    def evaluate(self, step: int) -> None:
        """Score the averaged weights on the validation set, over all ranks; keep them where they are the best.

        A failure is a warning: the weights are unharmed, and the next evaluation may succeed.
        """
        if self.sources.validation is None:
            return
        PULSE.enter("evaluate")
        if self.is_stuck():
            return
        generator = self.trainer.averaged()
        try:
            self.scores = evaluate(PULSE.beating(generator), self.sources.validation, self.ruler, self.launch)
        except EvaluationFailed as error:
            self.say(f"warning: {error}; training goes on")
            self.meter.skip()
            return
        self.tracker.report(step, {f"val/{name}": value for name, value in self.scores.items()})
        # All ranks alike: what is best decides which steps are saved, together.
        if self._is_best() and self.launch.share(
            self._write(partial(self._export_best, step), last=step == self.total)
        ):
            self.best = {"step": step, **self.scores}
        self.meter.skip()

    def save(self, step: int, *, ending: bool = False) -> None:
        """Write a checkpoint and the weights for use: a copy, in a thread, or at once where the run is ending.

        A failure is a warning, but at the last step an error.
        """
        PULSE.enter("save")
        if self.is_stuck():
            return
        self._tell_failed_saves(wait=True)
        self._agree_on_bad_samples()
        tensors, state = self.trainer.state()
        whole = {
            "trainer": state,
            "total_steps": self.total,
            "passed_over": self.passed_over,
            "scores": self.scores,
            "best": self.best,
            "health": self.health.state(),
            "bad_samples": self.sources.loader.bad.state(),
            "validation": self._validation_fingerprint(),
        }
        last = step == self.total
        self._keep_folder()
        if self._write(lambda: checkpoint.refuse_not_finite(tensors), last=last) and self.launch.is_main:
            made, at_once = Snapshot(step=step, tensors=tensors, state=whole), last or ending
            made = made if at_once else made.apart()
            parameters = count_parameters(self.trainer.generator.parameters())
            works = made.writes(self.config, size=self.sources.size, parameters=parameters)
            if not at_once:
                self._writer.begin(*works)
            for work in works if at_once else ():
                self._write(work, last=last)
        self.launch.wait()
        self.meter.skip()

    def _tell_failed_saves(self, *, wait: bool) -> None:
        for error in self._writer.failures(wait=wait):
            self.say(f"warning: {error}; training goes on")

    def stop_if_asked(self, step: int) -> None:
        """End the run by Preempted, with a checkpoint of this step, where a signal asked a rank to. Collective."""
        if step == self.total or not self._vote.is_asked(self.stop.asked_by is not None):
            return
        if self.is_due("save", step):  # it is under way
            self._tell_failed_saves(wait=True)
            self.launch.wait()
        else:
            self.save(step, ending=True)
        self.stop.stage = "leaving"
        raise preempted(self.folder, step, self.stop.asked_by)

    def finish(self) -> None:
        """Draw the curves, and say where everything is.

        Raises:
            UserError: the history could not be written to the end.
        """
        PULSE.enter("end")
        self.stop.stage = "leaving"
        self.tracker.flush()
        self.tracker.plot(force=True)
        if bad := len(self.sources.loader.bad):
            self.say(f"note: {bad} training samples could not be read, others were in their place (see log.txt)")
        self.say(
            f"done: {self.total} steps. Curves {self.folder}/plots/losses.png, pictures {self.folder}/samples/, "
            f"weights {self.folder}/{GENERATOR}, checkpoints {self.folder}/checkpoints/"
        )

    def _agree_on_bad_samples(self) -> None:
        """Name the samples that any rank could not read since the last look, and stop where they are too many."""
        bad = self.sources.loader.bad
        for sample in bad.agree(self.launch.gather(bad.new)):
            self.say(f"bad sample: {sample.reason.splitlines()[0]}; another was read in its place")
        bad.check()

    def _is_best(self) -> bool:
        name = self.config.best_by
        if not math.isfinite(self.scores.get(name, math.nan)):
            return False
        if name not in self.best:
            return True
        gain = self.scores[name] - self.best[name]
        return gain < 0 if name in LOWER_IS_BETTER else gain > 0

    def _keep_folder(self) -> None:
        """Make the run folder anew, where somebody removed it: the next checkpoint can be gone on from."""
        if self.launch.is_main and not (self.folder / CONFIG).exists():
            self.say(f"warning: {self.folder} was removed: it is made anew")
            self._write(lambda: describe_run(self.config, self.shape, self.launch))

    def _write(self, action: Callable[[], None], *, last: bool = False) -> bool:
        """Write on rank 0; a failure is a warning, unless it is the run's last chance to write that. Whether it was."""
        if not self.launch.is_main:
            return True
        try:
            action()
        except (UserError, OSError) as error:
            if not last:
                self.say(f"warning: {error}; training goes on")
            elif isinstance(error, UserError):
                raise
            else:
                raise UserError(f"{self.folder}: cannot be written ({error}); free space or mend the disk") from error
            return False
        return True

    def _export_best(self, step: int) -> None:
        about = {"step": step, "size": self.sources.size, "scores": self.scores}
        weights = self.trainer.ema.state_dict()
        export_generator(self.folder / BEST, self.config.generator, weights, recipe=self.config.recipe, **about)

    def _validation_fingerprint(self) -> str | None:
        """Scores compare on one set alone."""
        return self.sources.validation.index.fingerprint if self.sources.validation else None

    def _choose_shown(self, first: Batch) -> Batch:
        """The samples that every grid shows: spread over the validation set, or the batch being overfitted."""
        validation = self.sources.validation
        if validation is None or self.config.overfit_one_batch:
            return first.take(GRID_ROWS)
        return validation.spread(GRID_ROWS)

    def _open_tracker(self) -> Tracker:
        tracking = self.config.tracking
        return Tracker(
            self.folder,
            to_json(self.config),
            report_to=tracking.report_to,
            run_name=tracking.run_name,
            total_steps=self.total,
            resume_step=self.start.step,
        )
