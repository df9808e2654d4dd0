"""Whole runs on a GPU, which the other tests of runs do not look for."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inpaint_dist import checkpoint
from inpaint_dist.batch import Batch, image_to_uint8
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.inpainter import Inpainter
from inpaint_dist.launch import Launch, algorithms_of
from inpaint_dist.recipes import RECIPES
from inpaint_dist.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Runner = Callable[..., Path]
QUIET = ("--lr-schedule", "constant", "--batch-size", "4", "--report-every", "1", "--sample-every", "99")


def tensors_of(run: Path, step: int) -> dict[str, str]:
    files = checkpoint.verify(run / "checkpoints" / checkpoint.folder_name(step))["files"]
    return {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("precision", ["bf16", "no", "fp16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_deterministic_run_that_goes_on_ends_in_the_bits_of_an_unbroken_one(
    recipe: str, precision: str, run_train: Runner
):
    flags = ("--deterministic", "--mixed-precision", precision, "--checkpoint-every", "99", "--eval-every", "99")
    flags += QUIET
    whole = run_train("--max-steps", "4", *flags, recipe=recipe, name="whole")
    run_train("--max-steps", "2", *flags, recipe=recipe, name="parts")
    parts = run_train("--max-steps", "4", *flags, recipe=recipe, name="parts")
    assert tensors_of(parts, 4) == tensors_of(whole, 4)
    assert not (whole / "faults.jsonl").exists()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_leaves_all_that_a_run_on_a_cpu_does_and_goes_on(run_train: Runner):
    flags = ("--checkpoint-every", "2", "--eval-every", "2", "--lr-schedule", "constant", "--report-every", "1")
    run_train("--max-steps", "2", *flags, name="run")
    run = run_train("--max-steps", "4", *flags, name="run")
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert sorted({line["step"] for line in lines}) == [1, 2, 3, 4]
    assert any("val/psnr" in line for line in lines)
    assert json.loads((run / "env.json").read_text())["device"].startswith("cuda")
    for name in ("generator.safetensors", "samples/step-0000004.png", "plots/losses.png"):
        assert (run / name).is_file(), name


@pytest.mark.parametrize("recipe", ["seed", "mend-light", "lama-small"])
def test_a_generator_fills_the_same_on_gpu_and_cpu(recipe: str, run_train: Runner):
    run = run_train("--max-steps", "2", *QUIET, recipe=recipe)
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[20:50, 30:70] = 255
    here, there = (Inpainter.load(run, device=device)(photo, mask).astype(int) for device in ("cpu", "cuda"))
    assert np.abs(here - there).max() <= 1
    assert (here == there).mean() > 0.99


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_copied_beside_a_busy_device_are_those_of_a_cpu(workers: int, shards: Path):
    index = ShardIndex.load(shards, "train")

    def loader(device: str) -> Loader:
        data = DataConfig(workers=workers)
        return Loader(data, index, seed=3, rank=0, world=1, per_process=4, device=torch.device(device))

    work, sums = torch.randn(4096, 4096, device="cuda"), []
    there = loader("cuda")
    for batch in there.batches(0, 40):
        for _ in range(4):
            work = torch.mm(work, work).clamp_(-1, 1)  # the copies of coming batches overtake it
        sums.append((image_to_uint8(batch.image), batch.mask.clone()))
        assert len(there._handed_out) <= 4
        del batch
    for (pixels, mask), expected in zip(sums, loader("cpu").batches(0, 40), strict=True):
        assert torch.equal(pixels.cpu(), image_to_uint8(expected.image))
        assert torch.equal(mask.cpu(), expected.mask)


# ------------------------------------------------------------------------------------------------ recorded steps

GPU = torch.device("cuda")


@pytest.fixture
def repeatable() -> Iterator[None]:
    with algorithms_of(GPU, deterministic=True):
        yield


def a_trainer(recipe: str, vgg16: Path, precision: Any = "bf16", **settings: Any) -> Trainer:
    torch.manual_seed(0)
    config = RECIPES[recipe]
    objective = replace(config.objective, perceptual=replace(config.objective.perceptual, weights=vgg16))
    if objective.r1_weight:
        objective = replace(objective, r1_every=2)
    generator = replace(config.generator, size=128) if hasattr(config.generator, "size") else config.generator
    launch = Launch(GPU, rank=0, world=1, precision=precision, threads=1)
    networks = (generator.build(), config.discriminator.build())
    return Trainer(replace(config.trainer, **settings), *networks, objective, launch, total_steps=20)


def a_batch(number: int) -> Batch:
    source = torch.Generator().manual_seed(number)
    image = torch.rand(4, 128, 128, 3, generator=source).permute(0, 3, 1, 2) * 2 - 1
    mask = (torch.rand(4, 1, 128, 128, generator=source) > 0.6).float()
    return Batch(image.to(GPU), mask.to(GPU), tuple(f"{number}-{sample}" for sample in range(4)))


def all_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors, _ = trainer.state()
    return {f"{group}.{name}": tensor.clone() for group, named in tensors.items() for name, tensor in named.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def recordings(trainer: Trainer) -> int:
    assert trainer._recorder is not None
    return len(trainer._recorder._recordings)


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recorded_step_is_the_one_that_is_not_bit_for_bit(recipe: str, precision: str, vgg16: Path):
    plain, recorded = (a_trainer(recipe, vgg16, precision, cuda_graphs=graphs) for graphs in (False, True))
    for step in range(12):
        measure = step in (0, 1, 2, 9)
        losses = [trainer.step(a_batch(step), measure=measure) for trainer in (plain, recorded)]
        assert str(plain.read(losses[0])) == str(recorded.read(losses[1])), step  # where fp16 overflows a norm is NaN
    assert recordings(recorded) == 2
    assert differing(all_of(plain), all_of(recorded)) == []
    assert plain.faults.look() == recorded.faults.look() == []


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize(
    "settings", [{"gradient_accumulation_steps": 2}, {"clip_grad": 0.1}, {"warmup_steps": 9}], ids=str
)
def test_it_is_so_with_other_settings(settings: dict[str, Any], vgg16: Path):
    plain, recorded = (a_trainer("unet", vgg16, cuda_graphs=graphs, **settings) for graphs in (False, True))
    for step in range(7):
        for trainer in (plain, recorded):
            trainer.step(a_batch(step))
    assert recordings(recorded) == 1
    assert differing(all_of(plain), all_of(recorded)) == []


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_fault_in_a_recorded_step_leaves_no_trace_and_nobody_waits(vgg16: Path):
    trainer = a_trainer("seed", vgg16)
    batches = [a_batch(step) for step in range(8)]
    for batch in batches[:5]:
        trainer.step(batch)
    assert recordings(trainer) == 1
    before = all_of(trainer)
    batches[5].image[1, 0, 0, 0] = float("nan")
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(batches[5])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert differing(before, all_of(trainer)) == []
    (fault,) = trainer.faults.look()
    assert (fault.step, fault.term, fault.samples) == (6, "batch", {0: ("5-1",)})
    trainer.step(batches[6])
    assert differing(before, all_of(trainer)) != []
    assert trainer.faults.look() == []


@pytest.mark.usefixtures("repeatable")
def test_recordings_are_made_anew_after_going_back(vgg16: Path):
    trainer = a_trainer("unet", vgg16)
    for step in range(5):
        trainer.step(a_batch(step))
    tensors, state = trainer.state()
    saved = {group: {name: t.clone() for name, t in named.items()} for group, named in tensors.items()}
    ends = []
    for _ in range(2):
        for step in range(5, 11):
            trainer.step(a_batch(step))
        ends.append(all_of(trainer))
        trainer.load_state(saved, state)
        assert recordings(trainer) == 0
    assert differing(*ends) == []


def test_what_cannot_be_recorded_goes_on_as_it_is_written(vgg16: Path, monkeypatch: pytest.MonkeyPatch):
    plain, waiting = (a_trainer("seed", vgg16, cuda_graphs=graphs) for graphs in (False, True))
    complete = waiting.gan.complete

    def slow(batch: Batch) -> Any:
        assert float(batch.mask.mean()) > 0
        return complete(batch)

    monkeypatch.setattr(waiting.gan, "complete", slow)
    with algorithms_of(GPU, deterministic=True):
        for step in range(3):
            for trainer in (plain, waiting):
                trainer.step(a_batch(step))
        with pytest.warns(RuntimeWarning, match="not recorded as a CUDA graph"):
            waiting.step(a_batch(3))
        plain.step(a_batch(3))
        for step in range(4, 6):
            for trainer in (plain, waiting):
                trainer.step(a_batch(step))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert differing(all_of(plain), all_of(waiting)) == []
