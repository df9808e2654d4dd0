"""Bugs that other inpainting trainers were released with: each is a check that our code passes and the bug fails.

The second half of every test makes the bug again, as small as it goes, so that a check that cannot fail shows.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import webdataset.writer
from torch import Tensor, nn

from inpaint_dist.batch import Batch, check, masked
from inpaint_dist.data.loader import DataConfig, Loader
from inpaint_dist.data.order import SampleOrder
from inpaint_dist.data.photo_sources import find_photos
from inpaint_dist.data.shard_writer import ShardWriter
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.errors import UserError
from inpaint_dist.launch import Launch
from inpaint_dist.losses.adversarial import AdversarialConfig, SoftMaskConfig
from inpaint_dist.models import PatchDiscriminatorConfig, UNetConfig
from inpaint_dist.models.fourier import FourierUnit
from inpaint_dist.recipes import RECIPES
from inpaint_dist.trainer import Trainer, TrainerConfig

ALONE = Launch(torch.device("cpu"), rank=0, world=1, precision="no", threads=1)


def a_trainer() -> Trainer:
    torch.manual_seed(0)
    networks = (UNetConfig(channels=(4, 8)).build(), PatchDiscriminatorConfig(channels=(4, 8)).build())
    return Trainer(TrainerConfig(lr=1e-2), *networks, RECIPES["unet"].objective, ALONE, total_steps=20)


def a_batch() -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(4, 3, 16, 16) * 2 - 1, (torch.rand(4, 1, 16, 16) > 0.6).float(), tuple("abcd"))


def test_a_hole_that_is_taken_for_real_costs_the_generator_less_than_one_that_is_caught():
    """AOT-GAN labels its generator's patches the other way round."""
    mask, taken, caught = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)

    def is_right(loss: Callable[[Tensor], Tensor]) -> bool:
        return bool(loss(taken) < loss(caught))

    assert is_right(lambda fake: SoftMaskConfig().build().generator(fake, mask))
    assert not is_right(lambda fake: F.mse_loss(fake, 1 - mask[..., :2, :2]))


def test_the_discriminator_moves_by_its_own_loss_alone():
    """AOT-GAN's steps on gradients that the generator's loss left in it."""
    ours, batch = a_trainer(), a_batch()
    game, judge = ours.gan, ours.discriminator
    alone = deepcopy(judge)
    before = {name: p.detach().clone() for name, p in judge.named_parameters()}

    game.discriminator_loss(batch, game.complete(batch)).total.backward()
    clean = {name: p.grad.clone() for name, p in judge.named_parameters() if p.grad is not None}
    game.generator_loss(batch, game.complete(batch)).total.backward()  # the bug: nobody froze it, nobody cleared it
    polluted = {name: p.grad for name, p in judge.named_parameters() if p.grad is not None}
    assert not all(torch.allclose(clean[name], polluted[name]) for name in clean)

    fresh = a_trainer()
    fresh.step(batch)
    for (name, moved), old in zip(fresh.discriminator.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(old, before[name])
        told = -clean[name].sign() * 1e-2  # Adam's first step is its rate, against the gradient's sign
        some = clean[name].abs() > 1e-5
        assert torch.allclose((moved - old)[some], told[some], rtol=0.01)


def test_the_ranks_of_a_step_read_different_photos(shards: Path):
    """LaMa's training set is not split by rank: all walk the same photos."""
    index = ShardIndex.load(shards, "train")

    def ranks_of_a_step(split: bool) -> list[set[int]]:
        device = torch.device("cpu")
        loaders = [
            Loader(DataConfig(), index, seed=0, rank=rank if split else 0, world=2, per_process=4, device=device)
            for rank in range(2)
        ]
        return [{draw.index for draw in loader.draws(0)} for loader in loaders]

    first, second = ranks_of_a_step(split=True)
    assert len(first) == len(second) == 4 and not first & second
    first, second = ranks_of_a_step(split=False)
    assert first == second


def test_averaged_weights_load_strictly_into_the_network_they_are_of():
    """LaMa's EMA checkpoints have other names than its generator."""
    trainer = a_trainer()
    trainer.step(a_batch())
    tensors, _ = trainer.state()
    UNetConfig(channels=(4, 8)).build().load_state_dict(tensors["ema"], strict=True)
    renamed = {f"model.{name}": tensor for name, tensor in tensors["ema"].items()}
    with pytest.raises(RuntimeError, match="Missing key"):
        UNetConfig(channels=(4, 8)).build().load_state_dict(renamed, strict=True)


def test_the_spectrum_trains_in_bf16():
    """LaMa's Fourier layers hand torch.fft half precision, which raises."""
    features = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(FourierUnit(4)(features)).all()
    with pytest.raises(RuntimeError):
        torch.fft.rfftn(features, dim=(2, 3))


def test_photos_of_every_common_kind_are_found(tmp_path: Path):
    """LaMa reads *.jpg alone, and says nothing of the rest."""
    names = {"a.jpg", "b.JPEG", "c.png", "d.webp", "deep/e.jpg"}
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    found = {Path(source.path).name for source in find_photos([str(tmp_path)], "--photos").sources}
    assert found == {Path(name).name for name in names}
    assert {path.name for path in tmp_path.rglob("*.jpg")} != found


def test_a_checkpoint_holds_what_the_next_step_needs():
    """MAT, MI-GAN and FcF save no optimiser and count images from 0 again."""
    trainer, batch = a_trainer(), a_batch()
    for _ in range(2):
        trainer.step(batch)
    tensors, state = deepcopy(trainer.state())

    def next_weights(restored: Trainer) -> list[Tensor]:
        restored.step(batch)
        return [p.detach().clone() for p in restored.generator.parameters()]

    expected = next_weights(trainer)
    again = a_trainer()
    again.load_state(tensors, state)
    assert again.step_count == 2 and all(map(torch.equal, next_weights(again), expected))
    weights_alone = a_trainer()
    weights_alone.generator.load_state_dict(tensors["generator"])
    weights_alone.discriminator.load_state_dict(tensors["discriminator"])
    assert not all(map(torch.equal, next_weights(weights_alone), expected))


def test_a_gradient_that_is_not_a_number_moves_nothing_and_is_told():
    """MAT and its kin turn NaN gradients into 0 without a word, and go on."""
    trainer, batch = a_trainer(), a_batch()
    image = batch.image.clone()
    image[0, :, 5, 5] = torch.nan
    before = [p.detach().clone() for p in trainer.generator.parameters()]
    trainer.step(Batch(image, batch.mask, batch.keys))
    assert all(map(torch.equal, before, trainer.generator.parameters()))
    assert trainer.faults.skipped == 1

    network = nn.Linear(2, 1)
    network(torch.tensor([[torch.nan, 1.0]])).sum().backward()
    assert network.weight.grad is not None and torch.isnan(network.weight.grad).any()
    hushed = torch.nan_to_num(network.weight.grad)
    assert torch.isfinite(hushed).all() and hushed.abs().sum() > 0  # a step that looks whole, and is not


def test_both_networks_step_on_one_completion_without_touching_each_others_graph():
    """edge-connect steps one network between the other's forward and backward, which current torch refuses."""
    trainer = a_trainer()
    trainer.step(a_batch())

    weight = torch.ones(1, requires_grad=True)
    square = (weight * 2.0) ** 2 * weight
    with torch.no_grad():
        weight += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_seed_0_is_a_seed_and_every_sample_has_a_mask_of_its_own(shards: Path):
    """deepfillv2-pytorch ignores seed 0 (`if seed:`), and gives one mask to a whole batch."""
    assert [d.index for d in SampleOrder(50, 0).draws(0, 50)] == [d.index for d in SampleOrder(50, 0).draws(0, 50)]
    assert [d.index for d in SampleOrder(50, 0).draws(0, 50)] != list(range(50))

    index, device = ShardIndex.load(shards, "train"), torch.device("cpu")
    config = DataConfig(mask_source="lama-train", workers=0)

    def different(masks: Iterable[Tensor]) -> int:
        return len({mask.numpy().tobytes() for mask in masks})

    loader = Loader(config, index, seed=0, rank=0, world=1, per_process=8, device=device)
    batch = next(iter(loader.batches(0, 1)))
    assert different(batch.mask) == 8
    assert different(batch.mask[:1].expand(8, -1, -1, -1)) == 1


def test_every_adversarial_loss_on_the_menu_can_be_played():
    """LaMa's `kind: bce` crashes at the first step: its loss takes other arguments than the game gives."""

    def plays(loss: Any) -> bool:
        fake, mask = torch.rand(2, 1, 4, 4, requires_grad=True), torch.ones(2, 1, 16, 16)
        try:
            games = (loss.discriminator(real=torch.rand(2, 1, 4, 4), fake=fake, mask=mask), loss.generator(fake, mask))
        except TypeError:
            return False
        pulls = [torch.autograd.grad(game, fake)[0] for game in games]
        return all(bool(torch.isfinite(pull).all()) and bool(pull.abs().sum() > 0) for pull in pulls)

    class OfAnotherSignature:
        def discriminator(self, mask: Tensor, real: Tensor) -> Tensor:
            return F.binary_cross_entropy(real, torch.ones_like(real)) * mask.mean()

    menu = get_args(AdversarialConfig)
    assert len(menu) >= 4
    assert all(plays(config().build()) for config in menu)
    assert not plays(OfAnotherSignature())


def test_a_mask_whose_axes_were_never_moved_does_not_reach_a_step():
    """MAT and DeepFillv2's ports call `mask.transpose(…)` and drop what it returns."""
    whole = a_batch()
    check(whole)
    mask = whole.mask.permute(0, 2, 3, 1)  # (B, H, W, 1), as images are read
    mask.permute(0, 3, 1, 2)  # and thrown away
    object.__setattr__(whole, "mask", mask)  # past the types, which the tests check and a run does not
    with pytest.raises(UserError, match=r"masks \(4, 16, 16, 1\), not"):
        check(whole)


def test_what_the_hole_hides_never_reaches_the_generator():
    """A photo pasted under its mask by multiplication keeps a NaN; a mask of the wrong polarity keeps the hole."""
    image, mask = torch.full((1, 3, 4, 4), torch.nan), torch.ones(1, 1, 4, 4)
    assert torch.equal(masked(image, mask), torch.zeros_like(image))
    assert torch.isnan(image * (1 - mask)).all()


def test_webdatasets_writer_finishes_a_shard_that_failed_and_ours_leaves_none(tmp_path: Path):
    """Left by an exception, its ShardWriter gives half a shard the name of a whole one."""

    def break_off(writer: AbstractContextManager[Any], write: Callable[[Any], object]) -> None:
        with suppress(ZeroDivisionError), writer as open_writer:
            write(open_writer)
            raise ZeroDivisionError

    theirs, ours = tmp_path / "theirs-000000.tar", tmp_path / "train-000000.tar"
    their_writer = webdataset.writer.ShardWriter(f"{tmp_path}/theirs-%06d.tar", verbose=0)
    break_off(their_writer, lambda writer: writer.write({"__key__": "a", "txt": "b"}))
    assert theirs.exists()
    break_off(ShardWriter(ours), lambda writer: writer.add("a", {"jpg": b"b"}))
    assert not ours.exists()
