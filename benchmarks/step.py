"""One training step of a recipe: the trainer against bare PyTorch loops of the same networks and losses.

python -m benchmarks.step [--recipe unet seed] [--device cuda] [--precision bf16]

trainer: `Trainer.step`, with its checks, gradient norms and the generator's average, on a GPU as the CUDA graph that it
records and, beside, kernel by kernel. careful loop: the same step in a
dozen plain lines, without those three. naive loop: as first written, in float32: the fake made twice, D's gradients
computed and thrown away in the generator's step, Adam as it comes, `.item()` of each loss. On a CPU, CPU seconds; on a
GPU, seconds between events on its stream.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import cpu_seconds, write_report
from inpaint_dist import cli
from inpaint_dist.batch import Batch, masked
from inpaint_dist.config import TrainConfig
from inpaint_dist.errors import UsageError
from inpaint_dist.launch import Launch
from inpaint_dist.recipes import RECIPES
from inpaint_dist.trainer import Trainer

TRAINER, CAREFUL, NAIVE = "trainer", "careful loop", "naive loop"
UNRECORDED = "trainer, kernel by kernel"
Step: TypeAlias = Callable[[Batch], Mapping[str, Tensor]]

PRODUCT = 8192
"""Side of the bf16 matrix product that a GPU's speed is measured by."""
_WARM_UP = 5
_AGREE = 0.02  # of bf16's losses against float32's


@dataclass(frozen=True, kw_only=True)
class StepBenchmark:
    """Time training steps."""

    recipe: tuple[Literal["seed", "unet"], ...] = ("unet", "seed")
    """Recipes to step, each beside its bare loops."""
    batch_size: int = 8
    """Images of a step."""
    size: int = 256
    """Pixels of a side, a multiple of 32."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    precision: Literal["no", "bf16"] = "no"
    """Of trainer and careful loop: no = float32, bf16 = autocast. The naive loop has float32 always."""
    rounds: int = 3
    """Rounds in which all take their turn, after one or more steps that are not counted."""
    steps: int | None = None
    """Steps of a turn; None: 1 on a CPU, 20 on a GPU."""
    threads: int = 1
    """CPU threads; with one, CPU seconds hold no waiting for other threads."""

    def __post_init__(self) -> None:
        for flag in ("batch_size", "rounds", "threads"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag.replace('_', '-')} {getattr(self, flag)}: give at least 1")
        if self.size < 32 or self.size % 32:
            raise UsageError(f"--size {self.size}: give a multiple of 32")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps {self.steps}: give at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: no GPU is usable here")

    @property
    def launch(self) -> Launch:
        """This process, alone."""
        device = torch.device(self.device, 0) if self.device == "cuda" else torch.device("cpu")
        return Launch(device=device, rank=0, world=1, precision=self.precision, threads=self.threads)


def main(argv: Sequence[str]) -> None:
    config = cli.parse(StepBenchmark, argv, prog="python -m benchmarks.step", description=__doc__ or "")
    torch.set_num_threads(config.threads)
    product = None
    if config.device == "cuda":
        torch.set_float32_matmul_precision("high")  # as open_launch sets both
        torch.backends.cudnn.benchmark = True
        product = matmul_flops()
    figures = {name: measure(RECIPES[name], config, product) for name in dict.fromkeys(config.recipe)}
    for name, values in figures.items():
        print(f"{name}, batch {config.batch_size} of {config.size} pixels on {config.device}")
        for key, value in values.items():
            print(f"  {key:<44}{value if not isinstance(value, dict) else ''}")
            for row, number in value.items() if isinstance(value, dict) else ():
                print(f"    {row:<42}{number}")
    write_report(
        f"step-{config.device}",
        figures,
        seconds="CPU seconds" if config.device == "cpu" else "seconds between CUDA events",
        batch_size=config.batch_size,
        size=config.size,
        precision={TRAINER: config.precision, CAREFUL: config.precision, NAIVE: "no"},
        rounds=config.rounds,
        steps_a_turn=steps_of(config),
        threads=config.threads,
        bf16_product_tflops=None if product is None else round(product / 1e12, 1),
    )


def measure(recipe: TrainConfig, config: StepBenchmark, product: float | None) -> dict[str, Any]:
    """All figures of a recipe."""
    launch = config.launch
    batch = a_batch(config.batch_size, config.size, launch.device)
    steps, memory = build(recipe, launch, batch)
    seconds = timed(steps, batch, config)
    spent = {name: median(values) for name, values in seconds.items()}
    operations, flops = count_work(unrecorded(recipe), config)
    step_flops = {name: count * config.batch_size for name, count in flops.items()}
    figures: dict[str, Any] = {
        "seconds a step": {name: round(value, 5) for name, value in spent.items()},
        "seconds of the trainer for one of": {
            name: round(median(a / b for a, b in zip(seconds[TRAINER], seconds[name], strict=True)), 3)
            for name in seconds
            if name != TRAINER
        },
        "images a second": {name: round(config.batch_size / value, 2) for name, value in spent.items()},
        "aten operations a step": operations,
        "GFLOP an image": {name: float(f"{count / 1e9:.4g}") for name, count in flops.items()},
    }
    if product is not None:
        figures["share of the bf16 product's FLOP/s"] = {
            name: round(step_flops[TRAINER] / value / product, 4) for name, value in spent.items()
        }
        figures["peak MiB, networks and optimisers included"] = memory
    return figures


def build(recipe: TrainConfig, launch: Launch, batch: Batch) -> tuple[dict[str, Step], dict[str, int]]:
    """The ways to step, of equal weights and warmed up, and the peak memory of each in MiB (0 on a CPU).

    Raises:
        AssertionError: where their first losses differ, for then they do not do the same work.
    """
    torch.manual_seed(0)
    networks = (recipe.generator.build(), recipe.discriminator.build())
    steps: dict[str, Step] = {}
    memory: dict[str, int] = {}
    first: dict[str, Mapping[str, Tensor]] = {}
    on_gpu = launch.device.type == "cuda"
    makers = {TRAINER: trainer_step, CAREFUL: careful_step, NAIVE: naive_step}
    if on_gpu and recipe.trainer.cuda_graphs:
        makers[UNRECORDED] = unrecorded_step
    for name, maker in makers.items():
        before = torch.cuda.memory_allocated() if on_gpu else 0
        torch.cuda.reset_peak_memory_stats() if on_gpu else None
        steps[name] = maker(recipe, *deepcopy(networks), launch)
        first[name] = steps[name](batch)
        for _ in range(_WARM_UP if on_gpu else 0):
            steps[name](batch)
        memory[name] = (torch.cuda.max_memory_allocated() - before) >> 20 if on_gpu else 0
    for name, losses in first.items():
        for key in ("d/loss", "g/loss"):
            ours, theirs = float(first[TRAINER][key]), float(losses[key])
            assert abs(ours - theirs) <= _AGREE * abs(ours), f"{name}: first {key} {theirs} against {ours}"
    return steps, memory


def timed(steps: Mapping[str, Step], batch: Batch, config: StepBenchmark) -> dict[str, list[float]]:
    """Seconds a step, by round; all take their turn in each."""
    count = steps_of(config)
    clock = cpu_seconds if config.device == "cpu" else _gpu_seconds

    def turn(step: Step) -> None:
        for _ in range(count):
            step(batch)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(config.rounds):
        for name, step in steps.items():
            seconds[name].append(clock(turn, step) / count)
    return seconds


def steps_of(config: StepBenchmark) -> int:
    """Steps of a turn."""
    return config.steps or (1 if config.device == "cpu" else 20)


def _gpu_seconds(function: Callable[..., object], *args: Any) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function(*args)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def matmul_flops() -> float:
    """FLOP/s of a large bf16 product on the GPU: the best of five turns of ten."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def turn() -> None:
        for _ in range(10):
            torch.mm(a, b)

    turn()
    return 10 * 2 * PRODUCT**3 / min(_gpu_seconds(turn) for _ in range(5))


def count_work(recipe: TrainConfig, config: StepBenchmark) -> tuple[dict[str, int], dict[str, float]]:
    """Dispatched aten operations of a step, and FLOP an image, of each way to step; counted on two images."""
    batch = a_batch(2, config.size, config.launch.device)
    steps, _ = build(recipe, config.launch, batch)
    operations: dict[str, int] = {}
    flops: dict[str, float] = {}
    for name, step in steps.items():
        with Operations() as counted:
            step(batch)
        operations[name] = counted.total()
        with FlopCounterMode(display=False) as counter:
            step(batch)
        flops[name] = counter.get_total_flops() / len(batch)
    return operations, flops


class Operations(TorchDispatchMode):
    """Counts what PyTorch dispatches to a device's kernels; views and other bookkeeping count as well."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.by_name[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def total(self) -> int:
        """All operations together."""
        return self.by_name.total()


def a_batch(count: int, size: int, device: torch.device) -> Batch:
    """Noise with a hole in the middle that takes a quarter of it, laid out as the loader does."""
    source = torch.Generator().manual_seed(0)
    image = torch.rand(count, size, size, 3, generator=source).mul_(2).sub_(1).permute(0, 3, 1, 2)
    mask = torch.zeros(count, 1, size, size)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1.0
    return Batch(image.to(device), mask.to(device), tuple(map(str, range(count))))


# -------------------------------------------------------------------- ways to step


def unrecorded(recipe: TrainConfig) -> TrainConfig:
    """The recipe without CUDA graphs."""
    return replace(recipe, trainer=replace(recipe.trainer, cuda_graphs=False))


def trainer_step(recipe: TrainConfig, generator: nn.Module, discriminator: nn.Module, launch: Launch) -> Step:
    """The package's own, as a run calls it between two reports."""
    trainer = Trainer(recipe.trainer, generator, discriminator, recipe.objective, launch, total_steps=1_000_000)
    return trainer.step


def unrecorded_step(recipe: TrainConfig, generator: nn.Module, discriminator: nn.Module, launch: Launch) -> Step:
    """The package's own, each kernel started by itself."""
    return trainer_step(unrecorded(recipe), generator, discriminator, launch)


def careful_step(recipe: TrainConfig, generator: nn.Module, discriminator: nn.Module, launch: Launch) -> Step:
    """A bare loop that wastes nothing: one fake a step, D frozen in G's step, fused Adam, channels_last."""
    for network in (generator, discriminator):
        network.to(launch.device).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    adam_g, adam_d = adams(recipe, generator, discriminator, fused=True)

    def step(batch: Batch) -> dict[str, Tensor]:
        image, mask = batch.image, batch.mask
        with launch.autocast():
            prediction = generator(masked(image, mask), mask)
            fake = prediction.detach().to(image.dtype)
            scores = discriminator(torch.cat([image, fake]), torch.cat([mask, mask])).scores
            real_scores, fake_scores = scores.float().chunk(2)
            loss_d = label_loss(fake_scores, 0.0) + label_loss(real_scores, 1.0)
        loss_d.backward()
        adam_d.step()
        adam_d.zero_grad()
        discriminator.requires_grad_(False)
        with launch.autocast():
            adversarial = label_loss(discriminator(prediction, mask).scores.float(), 1.0)
            loss_g = generator_total(recipe, prediction.float(), image, mask, adversarial)
        loss_g.backward()
        discriminator.requires_grad_(True)
        adam_g.step()
        adam_g.zero_grad()
        return {"d/loss": loss_d.detach(), "g/loss": loss_g.detach()}

    return step


def naive_step(recipe: TrainConfig, generator: nn.Module, discriminator: nn.Module, launch: Launch) -> Step:
    """A bare loop as it is first written, in float32."""
    generator.to(launch.device).train()
    discriminator.to(launch.device).train()
    adam_g, adam_d = adams(recipe, generator, discriminator, fused=None)

    def step(batch: Batch) -> dict[str, Tensor]:
        image, mask = batch.image.contiguous(), batch.mask
        fake = generator(masked(image, mask), mask)
        scores_of_fake, scores_of_real = discriminator(fake.detach(), mask).scores, discriminator(image, mask).scores
        loss_d = label_loss(scores_of_fake, 0.0) + label_loss(scores_of_real, 1.0)
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        fake = generator(masked(image, mask), mask)
        loss_g = generator_total(recipe, fake, image, mask, label_loss(discriminator(fake, mask).scores, 1.0))
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        return {"d/loss": torch.tensor(loss_d.item()), "g/loss": torch.tensor(loss_g.item())}

    return step


def adams(
    recipe: TrainConfig, generator: nn.Module, discriminator: nn.Module, *, fused: bool | None
) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    """An optimiser for each network, at the recipe's rates."""
    rate, betas = recipe.trainer.lr, recipe.trainer.betas
    return (
        torch.optim.Adam(generator.parameters(), lr=rate, betas=betas, fused=fused),
        torch.optim.Adam(discriminator.parameters(), lr=recipe.trainer.lr_d or rate, betas=betas, fused=fused),
    )


def label_loss(scores: Tensor, label: float) -> Tensor:
    """Least squares to a label."""
    return F.mse_loss(scores, torch.full_like(scores, label))


def generator_total(
    recipe: TrainConfig, prediction: Tensor, image: Tensor, mask: Tensor, adversarial: Tensor
) -> Tensor:
    """The recipe's loss of the generator: L1 over the hole and the adversarial term."""
    objective = recipe.objective
    distance = ((prediction - image) * mask).abs().sum(dim=(1, 2, 3))
    if objective.reconstruction.reduction == "mean":
        distance = distance / (3.0 * mask.sum(dim=(1, 2, 3)))
    return objective.reconstruction_weight * distance.mean() + objective.adversarial_weight * adversarial


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))
