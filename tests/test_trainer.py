from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from inpaint_dist.batch import Batch
from inpaint_dist.config import TrainConfig
from inpaint_dist.errors import UsageError
from inpaint_dist.launch import Launch
from inpaint_dist.models import PatchDiscriminatorConfig, SeedAutoencoderConfig, UNetConfig
from inpaint_dist.optimizers import schedule
from inpaint_dist.recipes import RECIPES
from inpaint_dist.trainer import Trainer, TrainerConfig

ALONE = Launch(torch.device("cpu"), rank=0, world=1, precision="no", threads=1)


class PlainGenerator(nn.Module):
    """A generator without batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, masked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([masked, mask], dim=1))


UNET = UNetConfig(channels=(4, 8))


def a_trainer(generator: Callable[[], nn.Module] = UNET.build, *, double: bool = False, **settings: object) -> Trainer:
    torch.manual_seed(0)
    networks = (generator(), PatchDiscriminatorConfig(channels=(4, 8)).build())
    if double:
        networks = tuple(network.double() for network in networks)
    objective = RECIPES["unet"].objective
    return Trainer(TrainerConfig(**settings), *networks, objective, ALONE, total_steps=20)


def a_batch(count: int = 4, *, number: int = 0, double: bool = False) -> Batch:
    torch.manual_seed(100 + number)
    image = torch.rand(count, 3, 16, 16, dtype=torch.float64 if double else torch.float32) * 2 - 1
    mask = (torch.rand(count, 1, 16, 16) > 0.6).to(image.dtype)
    return Batch(image, mask, tuple(map(str, range(count))))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors, _ = trainer.state()
    return {f"{group}.{name}": tensor.clone() for group, named in tensors.items() for name, tensor in named.items()}


def test_a_step_moves_every_trainable_weight_of_both_networks_and_the_average():
    trainer = a_trainer(SeedAutoencoderConfig(channels=(4, 8)).build, lr=1e-2)
    before = weights(trainer)
    trainer.step(a_batch())
    after = weights(trainer)
    for group, network in (("generator", trainer.generator), ("discriminator", trainer.discriminator)):
        for name, _ in network.named_parameters():
            assert not torch.equal(before[f"{group}.{name}"], after[f"{group}.{name}"]), name
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("ema."))


def test_a_step_completes_the_batch_once_and_scores_it_twice():
    """The fake is generated once: D's step and G's step share it. D sees photos and completions in one pass."""
    trainer, calls = a_trainer(), {"g": 0, "d": []}
    trainer.generator.register_forward_hook(lambda *_: calls.update(g=calls["g"] + 1))
    trainer.discriminator.register_forward_hook(lambda _, inputs, __: calls["d"].append(len(inputs[0])))
    trainer.step(a_batch(4))
    assert calls == {"g": 1, "d": [8, 4]}


def test_the_generators_step_leaves_no_gradient_in_the_discriminator():
    """AOT-GAN's discriminator steps on gradients that the generator's loss left behind."""
    trainer = a_trainer()
    seen: list[bool] = []
    before = trainer.optimizer_g.step
    trainer.optimizer_g.step = lambda: (  # type: ignore[method-assign]
        seen.append(all(p.grad is None for p in trainer.discriminator.parameters())),
        before(),
    )
    trainer.step(a_batch())
    assert seen == [True]
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


def test_the_discriminators_update_is_that_of_its_own_loss_alone():
    trainer, reference = a_trainer(), a_trainer()
    batch = a_batch()
    completion = reference.gan.complete(batch)
    loss = reference.gan.discriminator_loss(batch, completion)
    loss.total.backward()
    reference.optimizer_d.step()
    trainer.step(batch)
    for mine, theirs in zip(trainer.discriminator.parameters(), reference.discriminator.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_steps_equal_steps_on_the_larger_batch_without_batch_statistics(parts: int):
    whole, cut = (a_trainer(PlainGenerator, double=True, gradient_accumulation_steps=n, lr=1e-2) for n in (1, parts))
    for number in range(5):
        losses = [t.step(a_batch(4, number=number, double=True), measure=True) for t in (whole, cut)]
        assert losses[0].keys() == losses[1].keys() >= {"d/accuracy_real", "d/accuracy_fake", "health/sharpness"}
        for name in losses[0].keys() - {"norm/g", "norm/d"}:
            assert torch.allclose(losses[0][name], losses[1][name], atol=1e-12, rtol=0), name
    for a, b in zip(whole.discriminator.parameters(), cut.discriminator.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-9, rtol=0)
        assert not torch.equal(a, torch.zeros_like(a))


def test_accumulation_counts_a_batch_once_in_the_running_statistics():
    once, twice = a_trainer(), a_trainer(gradient_accumulation_steps=2)
    once.step(a_batch(2))
    batch = a_batch(2)
    twice.step(Batch(batch.image.repeat(2, 1, 1, 1), batch.mask.repeat(2, 1, 1, 1)))
    norms = [[m for m in t.generator.modules() if isinstance(m, nn.BatchNorm2d)] for t in (once, twice)]
    kept = (1 - 0.1) ** 2  # two micro-batches move the statistics twice, not four times
    for a, b in zip(*norms, strict=True):
        assert torch.allclose(b.running_mean, a.running_mean / 0.1 * (1 - kept), atol=1e-5)


def test_a_trainer_restored_from_its_state_goes_on_bit_for_bit():
    straight, first = (a_trainer(lr_schedule="cosine") for _ in range(2))
    for number in range(6):
        straight.step(a_batch(number=number))
    for number in range(3):
        first.step(a_batch(number=number))
    tensors, state = first.state()
    tensors = {group: {name: t.clone().contiguous() for name, t in named.items()} for group, named in tensors.items()}
    second = a_trainer(lr_schedule="cosine")
    second.load_state(tensors, state)
    for number in range(3, 6):
        second.step(a_batch(number=number))
    expected, found = weights(straight), weights(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_saving_changes_nothing_of_the_steps_that_follow():
    plain, saving = a_trainer(), a_trainer()
    for number in range(4):
        plain.step(a_batch(number=number))
        saving.step(a_batch(number=number))
        saving.state()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(saving).values(), strict=True))


def test_the_average_warms_up_and_takes_the_statistics_of_batch_norm():
    trainer = a_trainer(ema_decay=0.999, lr=1e-2)
    initial = [p.clone() for p in trainer.ema.parameters()]
    trainer.step(a_batch())
    averaged = trainer.averaged()
    for start, average, now in zip(initial, averaged.parameters(), trainer.generator.parameters(), strict=True):
        assert torch.allclose(average, start * 0.1 + now * 0.9, atol=1e-6)  # (1 + 0) / (10 + 0)
    assert all(torch.equal(a, b) for a, b in zip(averaged.buffers(), trainer.generator.buffers(), strict=True))
    assert not averaged.training and not any(p.requires_grad for p in averaged.parameters())


def test_without_an_average_the_plain_weights_are_used():
    trainer = a_trainer(ema_decay=0.0, lr=1e-2)
    trainer.step(a_batch())
    pairs = zip(trainer.averaged().parameters(), trainer.generator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_measuring_changes_no_weight_and_tells_each_terms_pull():
    plain, measured = a_trainer(), a_trainer()
    unmeasured = plain.step(a_batch())
    losses = measured.step(a_batch(), measure=True)
    assert losses["grad/reconstruction"] > 0 and losses["grad/adversarial"] > 0
    only = {name for name in losses.keys() - unmeasured.keys() if not name.startswith("grad/")}
    assert only == {f"health/{name}" for name in ("colour_gap", "border", "sharpness", "checkerboard")}
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(measured).values(), strict=True))


def pulls(**objective: float) -> dict[str, float]:
    torch.manual_seed(0)
    networks = (UNET.build(), PatchDiscriminatorConfig(channels=(4, 8)).build())
    asked = replace(RECIPES["unet"].objective, **objective)
    losses = Trainer(TrainerConfig(), *networks, asked, ALONE, total_steps=9).step(a_batch(), measure=True)
    assert {name[5:] for name in losses if name.startswith("grad/")} == {n[2:] for n in losses if n[:2] == "g/"} - {
        "loss"
    }
    return {name: float(value) for name, value in losses.items() if name.startswith("grad/")}


def test_each_terms_pull_is_told_with_its_weight():
    once = pulls(feature_matching_weight=0.5)
    assert once.keys() == {"grad/reconstruction", "grad/adversarial", "grad/feature_matching"}
    weights = RECIPES["unet"].objective
    heavier = pulls(
        reconstruction_weight=2 * weights.reconstruction_weight,
        adversarial_weight=4 * weights.adversarial_weight,
        feature_matching_weight=4.0,
    )
    factors = {"grad/reconstruction": 2, "grad/adversarial": 4, "grad/feature_matching": 8}
    assert heavier == {name: pytest.approx(factors[name] * value, rel=1e-5) for name, value in once.items()}


def test_a_pull_is_the_mean_over_images_of_the_gradients_norm_at_each_ones_output():
    trainer, batch = a_trainer(PlainGenerator), a_batch()
    norms: list[torch.Tensor] = []
    for one in batch.split(len(batch)):  # what the mean over a batch divides by its images, each alone has whole
        completion = trainer.gan.complete(one)
        term = trainer.gan.generator_loss(one, completion).weighted["reconstruction"]
        norms.append(torch.autograd.grad(term, completion.prediction)[0].norm())
    expected = torch.stack(norms).mean()
    assert trainer.step(batch, measure=True)["grad/reconstruction"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "limited"),
    [
        ({"clip_grad": 1e-3}, {"g", "d"}),
        ({"clip_grad_d": 1e-3}, {"d"}),
        ({"clip_grad": 1e3, "clip_grad_d": 1e-3}, {"d"}),
        ({"clip_grad": 1e-3, "clip_grad_d": 1e3}, {"g"}),
    ],
)
def test_clipping_bounds_the_gradient_that_reaches_the_optimiser(settings: dict[str, float], limited: set[str]):
    trainer = a_trainer(**settings)
    norms: dict[str, float] = {}

    def watch(name: str, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        step = optimizer.step

        def watched() -> None:
            norms[name] = float(nn.utils.get_total_norm([p.grad for p in network.parameters()]))
            step()

        optimizer.step = watched  # type: ignore[method-assign]

    watch("g", trainer.optimizer_g, trainer.generator)
    watch("d", trainer.optimizer_d, trainer.discriminator)
    losses = trainer.step(a_batch())
    for name in ("g", "d"):
        before = float(losses[f"norm/{name}"])
        assert before > 2e-3
        assert norms[name] == pytest.approx(1e-3 if name in limited else before, rel=1e-3)


def test_each_network_may_have_a_limit_of_its_own():
    assert a_trainer(clip_grad=1.0)._clip == {"g": 1.0, "d": 1.0}
    assert a_trainer(clip_grad=1.0, clip_grad_d=0.1)._clip == {"g": 1.0, "d": 0.1}
    assert a_trainer(clip_grad_d=0.1)._clip == {"g": None, "d": 0.1}
    with pytest.raises(UsageError, match="--clip-grad-d 0"):
        TrainerConfig(clip_grad_d=0.0)


def test_both_rates_rise_over_the_warm_up():
    trainer, rates = a_trainer(lr=0.01, lr_d=0.02, warmup_steps=3), []
    for _ in range(5):
        trainer.step(a_batch())
        rates.append((trainer.optimizer_g.param_groups[0]["lr"], trainer.optimizer_d.param_groups[0]["lr"]))
    assert [g for g, _ in rates] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert all(d == pytest.approx(2 * g) for g, d in rates)
    with pytest.raises(UsageError, match="--warmup-steps -1"):
        TrainerConfig(warmup_steps=-1)


def test_bf16_steps_run_and_keep_float32_weights():
    torch.manual_seed(0)
    launch = Launch(torch.device("cpu"), rank=0, world=1, precision="bf16", threads=1)
    networks = (UNetConfig(channels=(4, 8)).build(), PatchDiscriminatorConfig(channels=(4, 8)).build())
    trainer = Trainer(TrainerConfig(), *networks, RECIPES["unet"].objective, launch, total_steps=9)
    values = trainer.read(trainer.step(a_batch(), measure=True))
    assert all(value == value for value in values.values())
    assert {p.dtype for p in trainer.generator.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "no"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_steps_in_every_precision_on_a_gpu(recipe: str, precision: str, vgg16: Path):
    config: TrainConfig = RECIPES[recipe]
    perceptual = replace(config.objective.perceptual, weights=vgg16)
    config = replace(config, objective=replace(config.objective, perceptual=perceptual))
    launch = Launch(torch.device("cuda"), rank=0, world=1, precision=precision, threads=1)
    networks = (config.generator.build(), config.discriminator.build())
    trainer = Trainer(config.trainer, *networks, config.objective, launch, total_steps=9)
    image = (torch.rand(2, 3, 256, 256) * 2 - 1).cuda()
    batch = Batch(image, (torch.rand(2, 1, 256, 256) > 0.5).float().cuda())
    for _ in range(3):
        values = trainer.read(trainer.step(batch, measure=True))
    assert trainer.faults.look() == []
    assert all(value == value for value in values.values())


@pytest.mark.parametrize(
    ("kind", "expected"), [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0.0]), ("tail", [1, 1, 0])]
)
def test_schedules_start_whole_and_end_where_they_say(kind: str, expected: list[float]):
    assert [schedule(kind, step, 100) for step in (0, 50, 100)] == pytest.approx(expected)


def test_the_tail_falls_over_the_last_fifth():
    assert [schedule("cosine-tail", step, 100) for step in (79, 80, 90, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert [schedule("tail", step, 100) for step in (79, 80, 90)] == pytest.approx([1.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"lr": 0.0}, "--lr 0.0"),
        ({"lr_d": 2.0}, "--lr-d 2.0"),
        ({"ema_decay": 1.0}, "--ema-decay"),
        ({"clip_grad": -1.0}, "--clip-grad"),
        ({"clip_grad": float("nan")}, "--clip-grad"),
        ({"betas": (2.0, 3.0)}, "--betas"),
        ({"gradient_accumulation_steps": 0}, "--gradient-accumulation-steps"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_flag(settings: dict[str, float], flag: str):
    with pytest.raises(UsageError, match=flag):
        TrainerConfig(**settings)


def collect_calls(function: Callable[[], object]) -> list[str]:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        names: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Count() as count:
        function()
    return count.names


def test_optimisers_and_average_are_a_handful_of_fused_operations():
    trainer, batch = a_trainer(), a_batch()
    trainer.step(batch)
    names = collect_calls(lambda: trainer.step(batch))
    assert sum("_fused_adam" in name for name in names) == 2
    assert sum("_foreach_sub.List" in name for name in names) == 1


def a_trainer_in_fp16(**objective: float) -> Trainer:
    networks = (UNetConfig(channels=(4, 8)).build(), PatchDiscriminatorConfig(channels=(4, 8)).build())
    launch = Launch(torch.device("cpu"), rank=0, world=1, precision="fp16", threads=1)
    asked = replace(RECIPES["unet"].objective, **objective)
    trainer = Trainer(TrainerConfig(), *networks, asked, launch, total_steps=9)
    trainer.step(a_batch())  # scales are made at the first step
    return trainer


def test_a_pull_too_small_for_fp16_is_told_all_the_same():
    trainer, batch = a_trainer_in_fp16(adversarial_weight=1e-6), a_batch(number=1)
    exact = a_trainer_in_fp16(adversarial_weight=1e-6)
    exact.launch = ALONE
    for name, network in (("generator", exact.generator), ("discriminator", exact.discriminator)):
        network.load_state_dict(getattr(trainer, name).state_dict())
    found, expected = (t.step(batch, measure=True) for t in (trainer, exact))
    for name in ("grad/reconstruction", "grad/adversarial"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.05)
