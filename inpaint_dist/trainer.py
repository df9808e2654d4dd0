"""One step of the GAN game: who is updated when, in which precision, over which ranks."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inpaint_dist.batch import LUCK, Batch, Completion, Luck
from inpaint_dist.chance import uniform
from inpaint_dist.cuda_graph import Recorder
from inpaint_dist.errors import UsageError
from inpaint_dist.faults import NOTES, Faults, Undo, lerp_unless
from inpaint_dist.gan import GeneratorLosses, InpaintingGAN
from inpaint_dist.launch import Launch
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.metrics.health import picture_health
from inpaint_dist.models.blocks import batch_norms, has_batch_statistics, kept_statistics, move_spectral_norms
from inpaint_dist.models.sync_batchnorm import synchronise_batch_norm
from inpaint_dist.optimizers import adam, load_optimizer, optimizer_tensors, schedule, set_rate

SMALLEST_SCALE = 2.0**-10
"""fp16 gradients that still overflow when their loss is scaled by no more than this are not a matter of scale."""

_OF_A_STEP = 4  # beside the loader's names of independent random draws of one sample


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Optimisers, and what is done with the weights."""

    lr: float = 2e-4
    """Learning rate of the generator (Adam)."""
    lr_d: float | None = None
    """Learning rate of the discriminator; None: as the generator's."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates of the first and second moment."""
    lr_schedule: Literal["constant", "cosine", "tail", "cosine-tail"] = "constant"
    """constant; cosine: from the rate to 0 over the run; tail, cosine-tail: to 0 over the last fifth, linearly or as a
    half cosine."""
    warmup_steps: int = 0
    """Steps over which both rates first rise linearly from 0."""
    clip_grad: float | None = None
    """Clip the gradient norm of each network to this; None: do not clip."""
    clip_grad_d: float | None = None
    """Clip the discriminator's to this instead; None: as --clip-grad."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of a step: each process's batch is read at once and computed in this many parts."""
    ema_decay: float = 0.999
    """Decay of the generator's moving average, which is what is evaluated and used; it warms up as (1 + t) / (10 + t).
    0: the plain weights."""
    sync_batchnorm: bool = True
    """Batch norm over the batches of all ranks. Off: each rank's own, faster, and no longer equal to one process."""
    cuda_graphs: bool = True
    """On one GPU, record the work of a step once and start it as a whole: the same kernels, without the time that
    Python takes to start each. Takes memory for what both ways of a step hold."""
    max_skipped_steps: int = 10
    """Steps in a row that may be skipped because a loss or a gradient is not finite; after one more the run goes back
    to its newest checkpoint, and on with the photos that follow those it failed at."""
    max_rollbacks: int = 2
    """Times that the run goes back to one and the same checkpoint; then it ends with an error."""

    def __post_init__(self) -> None:
        for flag, rate in (("--lr", self.lr), ("--lr-d", self.lr_d)):
            if rate is not None and not 0 < rate < 1:
                raise UsageError(f"{flag} {rate}: a learning rate lies between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"--betas {self.betas[0]} {self.betas[1]}: give two numbers from 0 to below 1")
        if self.gradient_accumulation_steps < 1:
            raise UsageError(f"--gradient-accumulation-steps {self.gradient_accumulation_steps}: give at least 1")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"--ema-decay {self.ema_decay}: give at least 0 and less than 1")
        for name in ("warmup_steps", "max_skipped_steps", "max_rollbacks"):
            if (count := getattr(self, name)) < 0:
                raise UsageError(f"--{name.replace('_', '-')} {count}: give 0 or more")
        for flag, norm in (("--clip-grad", self.clip_grad), ("--clip-grad-d", self.clip_grad_d)):
            if norm is not None and not norm > 0:
                raise UsageError(f"{flag} {norm}: give more than 0, or leave it out")


_OF_DDP = inspect.signature(DistributedDataParallel.__init__).parameters
NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OF_DDP else "broadcast_buffers": False  # torch renamed it
}


class Trainer:
    """Generator, discriminator, their optimisers and the generator's average, stepped together.

    A step: the generator completes the batch once; the discriminator is updated on photos and detached completions; it
    is frozen; the generator is updated on the same completions; the average moves. With several micro-batches D is
    updated over all of them first, on completions without gradients, and G completes them again.
    """

    def __init__(
        self,
        config: TrainerConfig,
        generator: nn.Module,
        discriminator: nn.Module,
        objective: ObjectiveConfig,
        launch: Launch,
        *,
        total_steps: int,
        seed: int = 0,
    ) -> None:
        self.config, self.launch, self.seed = config, launch, seed
        self.total_steps = total_steps
        self.step_count = 0
        self._clip = {"g": config.clip_grad, "d": config.clip_grad_d or config.clip_grad}
        if launch.world > 1 and config.sync_batchnorm:
            generator = synchronise_batch_norm(generator, launch.device)
            if not objective.r1_weight:  # no batch norm over ranks can be derived twice, which R1 does
                discriminator = synchronise_batch_norm(discriminator, launch.device)
        self.generator = self._place(generator)
        self.discriminator = self._place(discriminator)
        self._changing = [b for n, b in self.discriminator.named_buffers() if n in self.discriminator.state_dict()]
        """D's buffers but for what it only looks through, frozen and never saved."""
        self.ema = deepcopy(self.generator).eval().requires_grad_(False)
        self._ddp_g, self._ddp_d = self._distribute(self.generator), self._distribute(self.discriminator)
        self.gan = InpaintingGAN(
            self._ddp_g,
            self._ddp_d,
            objective,
            judge=self.discriminator,
            features=self._place(objective.perceptual.build()).eval() if objective.looks_at_features else None,
            one_pass=not has_batch_statistics(self.discriminator),
        )
        self.optimizer_g = adam(list(self.generator.parameters()), config.lr, config.betas)
        self.optimizer_d = adam(list(self.discriminator.parameters()), config.lr_d or config.lr, config.betas)
        # Each network has a scaler of its own: an overflow in one must not halve the other's scale.
        self._scaler_g, self._scaler_d = (
            torch.amp.GradScaler(launch.device.type, enabled=launch.precision == "fp16") for _ in range(2)
        )
        for scaler in (self._scaler_g, self._scaler_d):
            scaler.scale(torch.zeros((), device=launch.device))  # it makes its scale when it is first asked for it
        self.faults, self._undo = Faults(launch, config.max_skipped_steps), Undo()
        # On a GPU what changes with the steps is a tensor, for the recorded work to read.
        self._way: float | Tensor = torch.zeros((), device=launch.device) if launch.device.type == "cuda" else 0.0
        """What part of its way to the generator the average goes."""
        self._recorder: Recorder | None = None
        if config.cuda_graphs and launch.device.type == "cuda" and launch.world == 1:
            self._recorder = Recorder(self._work, self._clean_up)

    # ---------------------------------------------------------------- a step

    def step(self, batch: Batch, *, measure: bool = False) -> dict[str, Tensor]:
        """Update both networks on this rank's part of a global batch.

        Returns this rank's losses, detached and still on the device: reading them is what costs (see `read`). With
        `measure`, the gradient norms of the generator's terms at its output are among them, at the price of one more
        backward pass of the discriminator, and the health of the batch's composites.

        A step in which a loss or a gradient of any rank is not finite is counted and changes nothing else: `faults`
        tells of it. Where fp16 overflows, the one network is not updated and its scale is halved: that is no fault.
        """
        objective = self.gan.objective
        self._set_learning_rates()
        self._set_way()
        if objective.needs_luck:
            batch = replace(batch, luck=self._luck(len(batch)))
        penalise = objective.r1_weight > 0 and self.step_count % objective.r1_every == 0
        made = (self._recorder or self._work)(batch, measure=measure, penalise=penalise)
        self.step_count += 1
        notes = {name: made.pop(name) for name in NOTES}
        self.faults.file(self.step_count, batch.keys, notes)
        return made

    def _work(self, batch: Batch, *, measure: bool, penalise: bool) -> dict[str, Tensor]:
        """What a step does on the device: the same at every step, so that it can be recorded. Losses and notes."""
        self._undo.keep(self._before_g_is_known())
        self.faults.begin(batch)
        parts = list(batch.split(self.config.gradient_accumulation_steps))
        completions = list(self._completions(parts))
        losses = self._step_discriminator(parts, completions, penalise=penalise)
        losses |= self._step_generator(parts, completions, measure=measure)
        notes = self.faults.end()
        self._undo.put_back(self.faults.bad)
        with torch.no_grad():
            lerp_unless(self.faults.bad, list(self.ema.parameters()), list(self.generator.parameters()), self._way)
        return losses | notes

    def _clean_up(self) -> None:
        """Forget what a work that ended half-way left behind."""
        self.discriminator.requires_grad_(True)
        for optimizer in (self.optimizer_d, self.optimizer_g):
            optimizer.zero_grad(set_to_none=True)
        for scaler in (self._scaler_d, self._scaler_g):
            scaler._per_optimizer_states.clear()  # else it says that it unscaled already

    def _before_g_is_known(self) -> list[Tensor]:
        """What a step has changed when G's gradient is checked: D, statistics of batch norm, fp16's scales."""
        scalers = (self._scaler_g, self._scaler_d) if self._scaler_d.is_enabled() else ()
        return [
            *self.discriminator.parameters(),
            *(moment for moments in self.optimizer_d.state.values() for moment in moments.values()),
            *self._changing,
            *self.generator.buffers(),
            *(tensor for scaler in scalers for tensor in (scaler._scale, scaler._growth_tracker) if tensor is not None),
        ]

    def _luck(self, count: int) -> Luck:
        """Random numbers of this rank's samples: of each what any number of ranks, and a resumed run, would draw."""
        start = (self.step_count * self.launch.world + self.launch.rank) * count
        draws = uniform(count, LUCK, self.seed, _OF_A_STEP, start=start)
        return torch.from_numpy(draws).to(self.launch.device, non_blocking=True)

    def _completions(self, parts: list[Batch]) -> Iterator[Completion]:
        """One completion a micro-batch, with gradients only where there is a single one."""
        with self.launch.autocast():
            if len(parts) == 1:
                yield self.gan.complete(parts[0])
                return
            with torch.no_grad(), kept_statistics(self.generator):
                yield from [self.gan.complete(part) for part in parts]

    def _step_discriminator(
        self, parts: list[Batch], completions: list[Completion], *, penalise: bool
    ) -> dict[str, Tensor]:
        means: list[Tensor] = []
        move_spectral_norms(self.discriminator)
        for number, (part, completion) in enumerate(zip(parts, completions, strict=True)):
            with self._reducing(self._ddp_d, last=number == len(parts) - 1):
                with self.launch.autocast():
                    losses = self.gan.discriminator_loss(part, completion, penalise=penalise)
                self._scaler_d.scale(losses.total / len(parts)).backward()
            penalty = [losses.r1] if losses.r1 is not None else []
            scores = [losses.real, losses.fake, losses.accuracy_real, losses.accuracy_fake]
            means.append(torch.stack([losses.total.detach(), losses.adversarial, *scores, *penalty]))
        total, *shown = torch.stack(means).mean(0)
        norm = self._update(self.discriminator, self.optimizer_d, self._scaler_d, total, "d")
        names = ("d/loss", "d/real", "d/fake", "d/accuracy_real", "d/accuracy_fake", "d/r1")
        return dict(zip(names, shown, strict=False)) | {"norm/d": norm}

    def _step_generator(self, parts: list[Batch], completions: list[Completion], *, measure: bool) -> dict[str, Tensor]:
        means: dict[str, list[Tensor]] = {}
        self.discriminator.requires_grad_(False)
        move_spectral_norms(self.discriminator)
        for number, (part, completion) in enumerate(zip(parts, completions, strict=True)):
            with self._reducing(self._ddp_g, last=number == len(parts) - 1):
                with self.launch.autocast():
                    if len(parts) > 1:
                        completion = self.gan.complete(part)
                    losses = self.gan.generator_loss(part, completion)
                for name, value in self._measured(losses, part, completion, measure=measure):
                    means.setdefault(name, []).append(value)
                self._scaler_g.scale(losses.total / len(parts)).backward()
        self.discriminator.requires_grad_(True)
        mean = {name: torch.stack(values).mean() for name, values in means.items()}
        norm = self._update(self.generator, self.optimizer_g, self._scaler_g, mean["g/loss"], "g")
        return mean | {"norm/g": norm}

    def _measured(
        self, losses: GeneratorLosses, batch: Batch, completion: Completion, *, measure: bool
    ) -> Iterator[tuple[str, Tensor]]:
        """The generator's loss, its unweighted terms; at wish each weighted term's pull, and the pictures' health."""
        yield "g/loss", losses.total.detach()
        for name, term in losses.terms.items():
            yield f"g/{name}", term.detach()
        for name, term in losses.weighted.items() if measure else ():
            scaled, scale = self._scaler_g.scale(term), self._scaler_g.scale(torch.ones_like(term))  # else 0 in fp16
            pull = torch.autograd.grad(scaled, completion.prediction, retain_graph=True)[0]
            # The mean over images of one image's own pull: the same on any number of ranks and parts.
            wide = pull.flatten(1).to(torch.promote_types(pull.dtype, torch.float32)) / scale
            yield f"grad/{name}", len(pull) * torch.linalg.vector_norm(wide, dim=1).mean()
        if measure:
            yield from picture_health(completion.composite, batch.image, batch.mask).items()

    def _update(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        loss: Tensor,
        name: str,
    ) -> Tensor:
        """Check, clip, step. Returns the gradient's norm over all ranks' samples, before clipping."""
        scaler.unscale_(optimizer)
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        checked = norm
        if scaler.is_enabled():
            # An overflow of the scaled gradient is the scaler's own business: it skips the update and lowers the scale.
            checked = torch.where(scaler.scale(torch.ones_like(norm)) > SMALLEST_SCALE, 0.0, norm)
        self.faults.note(f"{name}/loss", [loss, checked])
        if (limit := self._clip[name]) is not None:
            nn.utils.clip_grads_with_norm_(network.parameters(), limit, norm)
        # The fused optimiser skips its update on the device where this is 1: no weight moves, and nobody waits.
        skip = self.faults.bad | ~torch.isfinite(norm)
        optimizer.found_inf = skip.float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        if scaler.is_enabled():
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    # ---------------------------------------------------------------- numbers

    def read(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over ranks of a step's losses, as numbers. Collective; on a GPU it waits for the step."""
        values = self.launch.mean(torch.stack([value.float() for value in losses.values()]))
        return dict(zip(losses, values.tolist(), strict=True)) | {"lr": self._rate}

    def _set_learning_rates(self) -> None:
        factor = schedule(self.config.lr_schedule, self.step_count, self.total_steps)
        factor *= min(1.0, (self.step_count + 1) / (self.config.warmup_steps + 1))
        self._rate, rate_d = factor * self.config.lr, factor * (self.config.lr_d or self.config.lr)
        set_rate(self.optimizer_g, self._rate)
        set_rate(self.optimizer_d, rate_d)

    def _set_way(self) -> None:
        way = 1.0 - min(self.config.ema_decay, (1 + self.step_count) / (10 + self.step_count))
        self._way = self._way.fill_(way) if isinstance(self._way, Tensor) else way

    # ---------------------------------------------------------------- weights

    def averaged(self) -> nn.Module:
        """The generator to evaluate and to use: averaged weights, statistics averaged over ranks. Collective."""
        self._average_statistics()
        with torch.no_grad():
            for mine, theirs in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
                mine.copy_(theirs)
        return self.ema

    def _average_statistics(self) -> None:
        """Make the running statistics of batch norm the ranks' mean, where each rank kept its own."""
        if self.launch.world == 1:
            return
        norms = [
            norm
            for network in (self.generator, self.discriminator)
            for norm in batch_norms(network)
            if type(norm) is nn.BatchNorm2d  # else it is synchronised
        ]
        buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
        if buffers:
            means = self.launch.mean(torch.cat(buffers)).split([len(buffer) for buffer in buffers])
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.copy_(mean)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything that shapes the next step: tensors by group, and the rest as JSON. Collective."""
        tensors = {
            "ema": dict(self.averaged().state_dict()),
            "generator": dict(self.generator.state_dict()),
            "discriminator": dict(self.discriminator.state_dict()),
            "optimizer_g": optimizer_tensors(self.optimizer_g),
            "optimizer_d": optimizer_tensors(self.optimizer_d),
        }
        scalers = {"scaler_g": self._scaler_g.state_dict(), "scaler_d": self._scaler_d.state_dict()}
        return tensors, {"step": self.step_count, **self.faults.state(), **scalers}

    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Go back to a saved state, bit for bit."""
        self.step_count = int(state["step"])
        self.faults.load_state(dict(state))
        self._undo = Undo()
        if self._recorder is not None:
            self._recorder.forget()
        self.ema.load_state_dict(tensors["ema"])
        self.generator.load_state_dict(tensors["generator"])
        self.discriminator.load_state_dict(tensors["discriminator"])
        load_optimizer(self.optimizer_g, tensors["optimizer_g"])
        load_optimizer(self.optimizer_d, tensors["optimizer_d"])
        for name, scaler in (("scaler_g", self._scaler_g), ("scaler_d", self._scaler_d)):
            if state[name]:  # empty where the run went on in another precision until now
                scaler.load_state_dict(state[name])

    # ---------------------------------------------------------------- parts

    def _place(self, network: nn.Module) -> nn.Module:
        """On the device, in the layout that its convolutions are fastest in."""
        return network.to(self.launch.device).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]

    def _distribute(self, network: nn.Module) -> nn.Module:
        if self.launch.world == 1:
            return network
        return DistributedDataParallel(
            network,
            device_ids=[self.launch.device] if self.launch.device.type == "cuda" else None,
            **NO_BUFFER_SYNC,  # batch statistics are synchronised or averaged by us
            gradient_as_bucket_view=True,
            static_graph=self.config.gradient_accumulation_steps == 1,
        )

    def _reducing(self, network: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Reduce gradients over ranks with the last micro-batch only."""
        if last or not isinstance(network, DistributedDataParallel):
            return nullcontext()
        return network.no_sync()


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Numbers in a network."""
    return sum(parameter.numel() for parameter in parameters)
