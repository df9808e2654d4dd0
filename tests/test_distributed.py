"""Several processes are one: run by this file itself on two ranks of a gloo group over loopback."""

import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn

from inpaint_dist import evaluation
from inpaint_dist.batch import Batch
from inpaint_dist.data.loader import DataConfig, Loader, ValidationSet
from inpaint_dist.data.shards import ShardIndex
from inpaint_dist.evaluation import METRICS, EvaluationFailed, evaluate
from inpaint_dist.launch import Launch, LaunchConfig, open_launch
from inpaint_dist.losses.adversarial import AdversarialConfig, HingeConfig, NonSaturatingConfig, SoftMaskConfig
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.perceptual import PerceptualConfig
from inpaint_dist.losses.reconstruction import ReconstructionConfig
from inpaint_dist.models import (
    AOTConfig,
    ContextEncoderConfig,
    DiscriminatorConfig,
    FeatureDiscriminatorConfig,
    FFCResNetConfig,
    FFCUNetConfig,
    GatedConfig,
    GeneratorConfig,
    GlobalDiscriminatorConfig,
    MIGANConfig,
    PatchDiscriminatorConfig,
    ProjectedDiscriminatorConfig,
    SeedAutoencoderConfig,
    SpectralDiscriminatorConfig,
    UNetConfig,
)
from inpaint_dist.models.blocks import has_batch_statistics
from inpaint_dist.models.sync_batchnorm import SyncBatchNorm2d
from inpaint_dist.recipes import RECIPES
from inpaint_dist.trainer import Trainer

ALONE = Launch(torch.device("cpu"), rank=0, world=1, precision="no", threads=1)
WORLD = 2
GLOBAL_BATCH = 4


@dataclass(frozen=True)
class Game:
    """Small networks, and what they are asked for."""

    generator: GeneratorConfig
    objective: ObjectiveConfig
    discriminator: DiscriminatorConfig


FEATURES = ObjectiveConfig(
    reconstruction=ReconstructionConfig(where="known", reduction="picture"),
    adversarial=NonSaturatingConfig(),
    adversarial_weight=0.5,
    feature_matching_weight=2.0,
)
PENALTY = ObjectiveConfig(adversarial=NonSaturatingConfig(), adversarial_weight=0.5, r1_weight=0.1, r1_every=2)
CHANCE = ObjectiveConfig(adversarial_weight=0.5, augment=("colour", "translation", "cutout"))
SQUASHED = PatchDiscriminatorConfig(channels=(4, 8))
RAW = PatchDiscriminatorConfig(channels=(4, 8), sigmoid=False)
SPECTRAL = SpectralDiscriminatorConfig(channels=(4, 8), halvings=2)
PROJECTED = ProjectedDiscriminatorConfig(channels=(4, 4, 8, 8), features="random")
HINGE = ObjectiveConfig(adversarial=HingeConfig(), adversarial_weight=0.5)
SPECTRA = ObjectiveConfig(
    reconstruction=ReconstructionConfig(scales=3),
    adversarial_weight=0.5,
    focal_frequency_weight=2.0,
    total_variation_weight=0.1,
)
SOFT = ObjectiveConfig(adversarial=SoftMaskConfig(), adversarial_weight=0.5)
GAMES = {
    "seed": Game(SeedAutoencoderConfig(channels=(4, 8)), RECIPES["seed"].objective, SQUASHED),
    "unet": Game(UNetConfig(channels=(4, 8)), RECIPES["unet"].objective, SQUASHED),
    "ffc": Game(FFCResNetConfig(base_channels=2, blocks=1), FEATURES, FeatureDiscriminatorConfig(channels=(4, 8))),
    "augmented": Game(FFCUNetConfig(channels=(4, 8), blocks=1), CHANCE, SQUASHED),
    "r1": Game(UNetConfig(channels=(4, 8)), PENALTY, RAW),
    "r1 of batch norm": Game(UNetConfig(channels=(4, 8)), PENALTY, FeatureDiscriminatorConfig(channels=(4, 8))),
    "context encoder": Game(ContextEncoderConfig(size=32, channels=(4, 8), bottleneck=8), FEATURES, RAW),
    "gated": Game(GatedConfig(base_channels=4, dilations=(2,)), RECIPES["deepfillv2"].objective, SPECTRAL),
    "aot": Game(AOTConfig(base_channels=4, blocks=1), SOFT, SPECTRAL),
    "projected": Game(UNetConfig(channels=(4, 8)), HINGE, PROJECTED),
    "spectra": Game(UNetConfig(channels=(4, 8)), SPECTRA, SQUASHED),
    "migan": Game(MIGANConfig(channels=(4, 8)), PENALTY, RAW),
}
EQUAL = [name for name in GAMES if name != "r1 of batch norm"]
"""Those in which two ranks are to equal one process."""
assert {type(game.generator) for game in GAMES.values()} == set(get_args(GeneratorConfig))
# The minibatch deviation is a rank's own: two ranks differ from one process by it.
assert {type(game.discriminator) for game in GAMES.values()} == {*get_args(DiscriminatorConfig)} - {
    GlobalDiscriminatorConfig
}


DISCRIMINATORS = {
    "patch": lambda raw: PatchDiscriminatorConfig(channels=(4, 8), sigmoid=not raw).build(),
    "spectral": lambda raw: SPECTRAL.build(),
    "features": lambda raw: FeatureDiscriminatorConfig(channels=(4, 8)).build(),
}
ADVERSARIAL = {type_.__name__.removesuffix("Config"): type_() for type_ in get_args(AdversarialConfig)}
RECONSTRUCTION = {
    " ".join(words): ReconstructionConfig(kind=words[0], where=words[1], reduction=words[2])
    for words in itertools.product(
        *(get_args(get_type_hints(ReconstructionConfig)[name]) for name in ("kind", "where", "reduction"))
    )
}
MORE = {
    "nothing": ObjectiveConfig(adversarial_weight=0.5),
    "R1": ObjectiveConfig(adversarial_weight=0.5, r1_weight=0.3),
    "everything": ObjectiveConfig(
        adversarial_weight=0.5,
        feature_matching_weight=2.0,
        perceptual_weight=1.5,
        style_weight=40.0,
        discriminator_sees="composite",
        augment=("colour", "translation", "cutout"),
    ),
}


class PlainGenerator(nn.Module):
    """A generator without batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, masked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([masked, mask], dim=1))


GENERATORS: dict[str, Callable[[], nn.Module]] = {
    "plain": PlainGenerator,
    **{type(game.generator).__name__: game.generator.build for game in GAMES.values()},
}
MENU = [
    *(["plain", "patch", "LeastSquares", reconstruction, "nothing"] for reconstruction in RECONSTRUCTION),
    *(
        [*words[:2], words[2], "l1 hole mean", words[3]]
        for words in itertools.product(("plain", "UNetConfig"), DISCRIMINATORS, ADVERSARIAL, MORE)
        if words[1::2] != ("features", "R1")  # no batch norm over ranks can be derived twice
    ),
    *([generator, "spectral", "NonSaturating", "l1 hole mean", "everything"] for generator in GENERATORS),
]
"""Every loss with every norm: no norm, batch norm in G and in D, spectral norm; and every generator."""


# -------------------------------------------------------------------------------------------- what the ranks do


def a_trainer(launch: Launch, kind: str = "unet", *, double: bool = False, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    game = GAMES["unet" if kind == "plain" else kind]
    generator = PlainGenerator() if kind == "plain" else game.generator.build()
    networks = (generator, game.discriminator.build())
    if double:
        networks = tuple(network.double() for network in networks)
    config = replace(RECIPES["seed" if kind == "seed" else "unet"].trainer, **settings)
    return Trainer(config, *networks, game.objective, launch, total_steps=40)


def some_batches(launch: Launch, shards: str, steps: int, *, double: bool = False) -> Iterator[Batch]:
    """This rank's parts of global batches, as the loader cuts them."""
    index = ShardIndex.load(Path(shards), "train")
    loader = Loader(
        DataConfig(workers=0),
        index,
        seed=5,
        rank=launch.rank,
        world=launch.world,
        per_process=GLOBAL_BATCH // launch.world,
        device=launch.device,
    )
    for batch in loader.batches(0, steps):
        wide = torch.float64 if double else torch.float32
        yield Batch(batch.image.to(wide), batch.mask.to(wide), batch.keys)


def all_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors, _ = trainer.state()
    return {f"{group}.{name}": tensor.clone() for group, named in tensors.items() for name, tensor in named.items()}


def train_steps(
    launch: Launch, *, shards: str, kind: str, steps: int, double: bool = False, **settings: Any
) -> dict[str, Any]:
    """Steps on the small shards: the losses over all ranks, the samples seen, the weights before and after."""
    trainer = a_trainer(launch, kind, double=double, **settings)
    start, losses, keys = all_weights(trainer), [], []
    for batch in some_batches(launch, shards, steps, double=double):
        step = trainer.step(batch, measure=True)
        losses.append({name: float(launch.mean(value.clone())) for name, value in step.items()})
        keys.append(batch.keys)
    return {"losses": losses, "keys": keys, "start": start, "end": all_weights(trainer)}


def gradients(
    launch: Launch, *, shards: str, game: Sequence[str], weights: str, double: bool = True, **settings: Any
) -> dict[str, torch.Tensor]:
    """Both networks' gradients of the first step, as the optimisers are given them, each as one vector.

    `game` names entries of NETWORKS, ADVERSARIAL, RECONSTRUCTION and MORE.
    """
    of_generator, of_discriminator, adversarial, reconstruction, more = game
    raw = ADVERSARIAL[adversarial].raw_scores
    objective = replace(
        MORE[more],
        adversarial=ADVERSARIAL[adversarial],
        reconstruction=RECONSTRUCTION[reconstruction],
        perceptual=PerceptualConfig(layers=("relu1_2",), weights=Path(weights)),
    )
    torch.manual_seed(0)
    networks = (GENERATORS[of_generator]().double(), DISCRIMINATORS[of_discriminator](raw).double())
    config = replace(RECIPES["unet"].trainer, **settings)
    trainer, found = Trainer(config, *networks, objective, launch, total_steps=40), {}
    if trainer.gan.features is not None:
        trainer.gan.features.double()  # type: ignore[attr-defined]
    update = trainer._update

    def noted(network: nn.Module, *rest: Any) -> torch.Tensor:
        found[rest[-1]] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).clone()
        return update(network, *rest)

    trainer._update = noted  # type: ignore[method-assign]
    (batch,) = some_batches(launch, shards, 1, double=True)
    trainer.step(batch)
    return found


def all_gradients(launch: Launch, *, games: list[list[str]], **settings: Any) -> list[dict[str, torch.Tensor]]:
    return [gradients(launch, game=game, **settings) for game in games]


def reduced_bytes(launch: Launch, *, shards: str, kind: str, **settings: Any) -> dict[str, Any]:
    """What crosses between the ranks in the third step: gradients of G and of D, and everything else."""
    trainer, counted = a_trainer(launch, kind, **settings), {"g": 0, "d": 0, "other": 0}

    def counting(name: str) -> Callable[..., Any]:
        def hook(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            counted[name] += bucket.buffer().nbytes
            work = dist.group.WORLD.allreduce([bucket.buffer().div_(launch.world)])
            return work.get_future().then(lambda done: done.value()[0])

        return hook

    trainer._ddp_g.register_comm_hook(None, counting("g"))
    trainer._ddp_d.register_comm_hook(None, counting("d"))
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast", "barrier")}

    def counted_call(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            tensor = arguments[1 if name == "all_gather" else 0]
            counted["other"] += tensor.nbytes
            return originals[name](*arguments, **named)

        return call

    for name in originals:
        setattr(dist, name, counted_call(name))
    try:
        for batch in some_batches(launch, shards, 3):
            counted.update(g=0, d=0, other=0)
            trainer.step(batch)
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    sizes = {
        n: 4 * sum(p.numel() for p in net.parameters())
        for n, net in (("g", trainer.generator), ("d", trainer.discriminator))
    }
    return {"counted": counted, "parameters": sizes}


def evaluated(launch: Launch, *, shards: str) -> dict[str, Any]:
    """All metrics over the val split, by stand-ins for the networks and for FID's equation."""
    validation = ValidationSet(ShardIndex.load(Path(shards), "val"), launch.device)
    generator, mine = a_trainer(launch, "seed").averaged(), []
    read = validation.batch

    def noted(numbers: Sequence[int], device: torch.device) -> Batch:
        mine.extend(numbers)
        return read(numbers, device)

    networks = {
        "LPIPS": lambda network, device: lambda result, image: (result - image).double().abs().amax((1, 2, 3)),
        "Inception": lambda device: lambda image: image.double().flatten(1)[:, :2048],
        "frechet_distance": lambda photos, completions: float((photos - completions).norm()),
    }
    with patch.object(validation, "batch", noted), patch.multiple(evaluation, **networks):
        ruler = evaluation.Ruler(evaluation.ALL_METRICS, launch.device)
        scores = evaluate(generator, validation, ruler, launch)
    return {"mine": mine, "all": range(len(validation)), "scores": scores}


def own_statistics(launch: Launch, *, shards: str) -> dict[str, Any]:
    trainer = a_trainer(launch, "unet", sync_batchnorm=False)
    for batch in some_batches(launch, shards, 3):
        trainer.step(batch)
    before = {name: buffer.clone() for name, buffer in trainer.generator.named_buffers()}
    average = {name: tensor.clone() for name, tensor in trainer.averaged().state_dict().items()}
    return {"before": before, "averaged": average, "saved": all_weights(trainer)}


def faulty_step(launch: Launch, *, shards: str, rank: int, where: str) -> dict[str, Any]:
    """A good step, one in which something is not finite on one rank alone, and a good one."""
    trainer = a_trainer(launch, "unet")
    good, bad, last = some_batches(launch, shards, 3)
    trainer.step(good)
    before, own = all_weights(trainer), dict(trainer.generator.state_dict())
    own = {name: tensor.clone() for name, tensor in own.items()}
    of_d, of_g = trainer.gan.adversarial.discriminator, trainer.gan.adversarial.generator
    if launch.rank == rank and where == "batch":
        bad.image[1, 0, 3, 3] = float("nan")
    elif launch.rank == rank and where == "d/loss":
        trainer.gan.adversarial.discriminator = lambda *given: of_d(*given) * float("inf")  # type: ignore[method-assign]
    elif launch.rank == rank and where == "g/loss":
        trainer.gan.adversarial.generator = lambda *given: of_g(*given) * float("inf")  # type: ignore[method-assign]
    spoiled = launch.rank == rank and where == "g/gradient"
    weight = next(trainer.generator.parameters())
    hook = weight.register_hook(lambda gradient: gradient * float("nan") if spoiled else gradient)
    trainer.step(bad)
    hook.remove()
    moved = [name for name, tensor in trainer.generator.state_dict().items() if not torch.equal(tensor, own[name])]
    after = all_weights(trainer)
    trainer.gan.adversarial.discriminator, trainer.gan.adversarial.generator = of_d, of_g  # type: ignore[method-assign]
    trainer.step(last)
    found = trainer.faults.look()
    return {
        "faults": [str(fault) for fault in found],
        "samples": [fault.samples for fault in found],
        "keys": bad.keys,
        "moved": [*moved, *(name for name in before if not torch.equal(before[name], after[name]))],
        "counted": trainer.faults.state(),
        "end": all_weights(trainer),
        "goes on": all(not torch.equal(after[name], tensor) for name, tensor in all_weights(trainer).items()),
    }


def gone_back(launch: Launch, *, shards: str, folder: str) -> dict[str, Any]:
    """A run of which steps 6 and 7 fail on the second rank, where one in a row may be skipped."""
    from inpaint_dist import train

    real, read = Trainer.step, []

    @contextmanager
    def this_launch(*_: object) -> Iterator[Launch]:
        yield launch

    def step(self: Trainer, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
        read.append((self.step_count + 1, batch.keys))
        if launch.rank == 1 and len(read) in (6, 7):
            batch.image[0, 0, 3, 3] = float("nan")
        return real(self, batch, **more)

    flags = "--max-steps 9 --max-skipped-steps 1 --checkpoint-every 4 --global-batch-size 4 --report-to none".split()
    small = "--generator.channels 4 8 --discriminator.channels 4 8 --eval-every 99 --sample-every 99".split()
    with patch.object(train, "open_launch", this_launch), patch.object(Trainer, "step", step):
        train.main(["unet", "--cpu", "--shards", shards, "--output-dir", folder, *flags, *small])
    return {"read": read}


def normalised(launch: Launch, *, sizes: list[list[int]], dtype: str, mean: float, spread: float) -> dict[str, float]:
    """Differences of our SyncBatchNorm2d on this rank's part from BatchNorm2d on the whole, in float64."""
    torch.manual_seed(1)
    channels = sizes[0][1]
    parts = [(torch.randn(size, dtype=torch.float64) * spread + mean).to(getattr(torch, dtype)) for size in sizes]
    pulls = [torch.randn(size, dtype=torch.float64) for size in sizes]
    whole, synced = nn.BatchNorm2d(channels, dtype=torch.float64), nn.BatchNorm2d(channels, dtype=parts[0].dtype)
    with torch.no_grad():
        for norm in (whole, synced):
            norm.weight.copy_(torch.linspace(0.5, 2.0, channels))
            norm.bias.copy_(torch.linspace(-1.0, 1.0, channels))
    synced.__class__ = SyncBatchNorm2d
    # One picture a column: the parts may differ in height and width, which changes nothing for batch norm.
    flat = torch.cat([part.double().transpose(0, 1).reshape(channels, -1) for part in parts], dim=1)
    reference = flat.T.reshape(-1, channels, 1, 1).clone().requires_grad_()
    pull = torch.cat([p.transpose(0, 1).reshape(channels, -1) for p in pulls], dim=1).T.reshape(-1, channels, 1, 1)
    wanted = whole(reference)
    (wanted * pull).sum().backward()
    mine = parts[launch.rank].clone().requires_grad_()
    found = synced(mine)
    (found * pulls[launch.rank].to(found.dtype)).sum().backward()
    start = sum(part.numel() // channels for part in parts[: launch.rank])
    here = slice(start, start + mine.numel() // channels)

    def apart(own: torch.Tensor, theirs: torch.Tensor) -> float:
        columns = own.detach().double().transpose(0, 1).reshape(channels, -1).T
        return float((columns - theirs.detach()[here].reshape(-1, channels)).abs().max())

    gradients = [launch.sum(p.grad.double()) for p in (synced.weight, synced.bias)]
    return {
        "output": apart(found, wanted),
        "input gradient": apart(mine.grad, reference.grad),
        "weight gradient": float((gradients[0] - whole.weight.grad).abs().max()),
        "bias gradient": float((gradients[1] - whole.bias.grad).abs().max()),
        "running mean": float((synced.running_mean - whole.running_mean).abs().max()),
        "running variance": float((synced.running_var - whole.running_var).abs().max()),
        "batches": float((synced.num_batches_tracked - whole.num_batches_tracked).abs()),
    }


def collectives(launch: Launch) -> dict[str, Any]:
    mine = torch.tensor([1.0, 10.0]) * (launch.rank + 1)
    return {
        "mean": launch.mean(mine.clone()).tolist(),
        "largest": launch.largest(mine.clone()).tolist(),
        "sum": launch.sum(mine.clone()).tolist(),
        "share": launch.share({"of": launch.rank, "path": Path("x")}),
        "gather": launch.gather([launch.rank]),
        "waited": launch.wait(),
        "main": launch.is_main,
    }


def badly_evaluated(launch: Launch, *, shards: str) -> str:
    """What is said where the second rank cannot score."""
    validation = ValidationSet(ShardIndex.load(Path(shards), "val"), launch.device)

    def complete(masked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if launch.rank == 1:
            raise RuntimeError("out of memory")
        return masked

    try:
        evaluate(complete, validation, evaluation.Ruler(METRICS, launch.device), launch)
    except EvaluationFailed as error:
        return str(error)
    return "nothing"


def serve(folder: Path) -> None:
    """Do what is asked on stdin, a JSON line a call, until it closes."""
    with open_launch(LaunchConfig(cpu=True, threads=1, mixed_precision="no")) as launch:
        for number, line in enumerate(sys.stdin):
            call = json.loads(line)
            try:
                answer = {"value": globals()[call.pop("function")](launch, **call)}
            except Exception:  # noqa: BLE001 - whatever it was, the test shall show it
                answer = {"error": traceback.format_exc()}
            part = folder / f"{number}-{launch.rank}.part"
            part.write_bytes(pickle.dumps(answer))
            part.rename(part.with_suffix(".pickle"))


# -------------------------------------------------------------------------------------------- asking them


class Ranks:
    """Processes of one gloo group that run functions of this file, together."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0
        folder.mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.processes = []
        for rank in range(WORLD):
            here: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
            here["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
            here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = os.environ | {name: str(value) for name, value in here.items()}
            with (folder / f"errors-{rank}.txt").open("w") as errors:
                command = [sys.executable, __file__, str(folder)]
                self.processes.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, env=environment, text=True)
                )

    def run(self, function: Callable[..., Any], *, timeout: float = 60.0, **settings: Any) -> list[Any]:
        """The function's result on each rank."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"function": function.__name__, **settings}) + "\n")
            process.stdin.flush()
        paths = [self.folder / f"{self.calls}-{rank}.pickle" for rank in range(WORLD)]
        self.calls += 1
        stop = time.monotonic() + timeout
        while not all(path.exists() for path in paths) and not self._in_trouble(paths) and time.monotonic() < stop:
            time.sleep(0.02)
        answers = [pickle.loads(path.read_bytes()) if path.exists() else {"error": "no answer"} for path in paths]
        if any("error" in answer for answer in answers):
            self.kill()
            pytest.fail("\n".join(str(answer.get("error", "")) for answer in answers) + self.errors())
        return [answer["value"] for answer in answers]

    def _in_trouble(self, paths: list[Path]) -> bool:
        raised = any("error" in pickle.loads(path.read_bytes()) for path in paths if path.exists())
        return raised or any(process.poll() is not None for process in self.processes)

    def errors(self) -> str:
        return "\n".join((self.folder / f"errors-{rank}.txt").read_text()[-3000:] for rank in range(WORLD))

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def close(self) -> list[int]:
        """Let them end by themselves; their exit codes."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        return [process.wait(timeout=60) for process in self.processes]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Ranks]]:
    held: list[Ranks] = [Ranks(tmp_path_factory.mktemp("ranks") / "0")]
    yield held
    if held[-1].processes[0].poll() is None:
        assert held[-1].close() == [0] * WORLD, held[-1].errors()
        assert "Warning" not in held[-1].errors()


@pytest.fixture
def ranks(held: list[Ranks]) -> Ranks:
    """Both ranks, started once for this file, and anew after a test that lost them."""
    if any(process.poll() is not None for process in held[-1].processes):
        held.append(Ranks(held[-1].folder.parent / str(len(held))))
    return held[-1]


def equal_on_all_ranks(answers: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(answers[0][name], other[name]) for other in answers[1:] for name in answers[0])


def furthest(found: list[dict[str, float]], expected: list[dict[str, float]]) -> float:
    """The largest difference of two courses of losses, relative where a loss is above 1."""
    assert len(found) == len(expected) > 0
    assert found[0].keys() == expected[0].keys()
    pairs = ((a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in a)
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)


# -------------------------------------------------------------------------------------------- what must hold


@pytest.mark.parametrize("kind", EQUAL)
def test_two_ranks_of_two_train_as_one_process_of_four(kind: str, ranks: Ranks, shards: Path):
    settings = {"shards": str(shards), "kind": kind, "steps": 20, "double": True}
    first, second = ranks.run(train_steps, **settings)
    alone = train_steps(ALONE, **settings)
    assert [a + b for a, b in zip(first["keys"], second["keys"], strict=True)] == alone["keys"]
    assert furthest(first["losses"], alone["losses"]) < 1e-9
    assert equal_on_all_ranks([first["end"], second["end"]])
    assert all(
        torch.allclose(first["end"][name].double(), alone["end"][name].double(), atol=1e-9) for name in alone["end"]
    )


@pytest.mark.parametrize("kind", EQUAL)
def test_in_float32_the_first_step_is_that_of_one_process(kind: str, ranks: Ranks, shards: Path):
    settings = {"shards": str(shards), "kind": kind, "steps": 1}
    first, second = ranks.run(train_steps, **settings)
    assert furthest(first["losses"], train_steps(ALONE, **settings)["losses"]) < 1e-5
    assert equal_on_all_ranks([first["end"], second["end"]])


def test_r1_leaves_the_discriminators_batch_norm_to_each_rank_and_all_hold_equal_weights(ranks: Ranks, shards: Path):
    answers = ranks.run(train_steps, shards=str(shards), kind="r1 of batch norm", steps=4, double=True)
    assert equal_on_all_ranks([answer["end"] for answer in answers])
    assert ["d/r1" in losses for losses in answers[0]["losses"]] == [True, False, True, False]


def test_accumulated_over_two_ranks_is_the_larger_batch_without_batch_statistics(ranks: Ranks, shards: Path):
    settings = {"shards": str(shards), "kind": "plain", "steps": 6, "double": True}
    first, second = ranks.run(train_steps, gradient_accumulation_steps=2, **settings)
    alone = train_steps(ALONE, **settings)
    assert furthest(first["losses"], alone["losses"]) < 1e-9
    assert equal_on_all_ranks([first["end"], second["end"]])
    still = [name for name in first["start"] if torch.equal(first["start"][name], first["end"][name])]
    assert [name for name in still if not name.startswith("optimizer")] == []


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The larger one of both networks' distances of gradients, relative to the gradient's length."""
    assert found.keys() == expected.keys() == {"d", "g"}
    assert all(float(vector.norm()) > 1e-6 for vector in expected.values())
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


@pytest.fixture(scope="module")
def alone(shards: Path, vgg16: Path) -> dict[tuple[str, ...], dict[str, torch.Tensor]]:
    """Of every game of the menu, one process's gradients."""
    torch.set_num_threads(1)  # this fixture comes before the one that does so for each test
    found = all_gradients(ALONE, shards=str(shards), weights=str(vgg16), games=MENU)
    return {tuple(game): one for game, one in zip(MENU, found, strict=True)}


def test_every_loss_and_norm_gives_two_ranks_the_gradients_of_one_process(
    ranks: Ranks, shards: Path, vgg16: Path, alone: dict, record_property: Callable[[str, object], None]
):
    first, second = ranks.run(all_gradients, timeout=200, shards=str(shards), weights=str(vgg16), games=MENU)
    found = {", ".join(game): apart(mine, alone[tuple(game)]) for game, mine in zip(MENU, first, strict=True)}
    record_property("games", len(found))
    record_property("largest relative difference of a gradient", max(found.values()))
    assert {name: difference for name, difference in found.items() if not difference < 1e-12} == {}
    assert all(equal_on_all_ranks([mine, theirs]) for mine, theirs in zip(first, second, strict=True))


def test_parts_give_the_gradients_of_the_whole_where_nothing_looks_at_the_batch(
    ranks: Ranks, shards: Path, vgg16: Path, alone: dict, record_property: Callable[[str, object], None]
):
    of_generators = [name for name, make in GENERATORS.items() if not has_batch_statistics(make())]
    games = [game for game in MENU if game[0] in of_generators and game[1] != "features"]
    assert len(of_generators) >= 4 and {game[1] for game in games} == {"patch", "spectral"}
    settings = {"shards": str(shards), "weights": str(vgg16), "games": games}
    first, _ = ranks.run(all_gradients, timeout=200, gradient_accumulation_steps=2, **settings)
    found = {", ".join(game): apart(mine, alone[tuple(game)]) for game, mine in zip(games, first, strict=True)}
    record_property("games", len(found))
    record_property("largest relative difference of a gradient", max(found.values()))
    assert {name: difference for name, difference in found.items() if not difference < 1e-12} == {}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "unet"])
def test_a_step_reduces_each_networks_gradients_once(kind: str, parts: int, ranks: Ranks, shards: Path):
    """None of the discriminator's in the generator's step; what else crosses is the faults and batch norm's sums."""
    for answer in ranks.run(reduced_bytes, shards=str(shards), kind=kind, gradient_accumulation_steps=parts):
        counted, parameters = answer["counted"], answer["parameters"]
        assert counted["g"] == parameters["g"]
        assert counted["d"] == parameters["d"]
        faults = 4 * 2 * (1 + 2 + 2)
        channels = (8, 4, 2) if kind == "unet" else ()
        completions = 1 if parts == 1 else 2 * parts
        norms = sum(completions * 4 * (2 * c + 1) + parts * 4 * 2 * c for c in channels)
        assert counted["other"] == faults + norms


def test_evaluation_counts_each_image_once_whatever_the_ranks(ranks: Ranks, shards: Path):
    answers = ranks.run(evaluated, shards=str(shards))
    alone = evaluated(ALONE, shards=str(shards))
    assert len(alone["all"]) % WORLD == 1  # the ranks have unequal shares
    assert sorted(number for answer in answers for number in answer["mine"]) == list(alone["all"])
    assert set(alone["scores"]) == set(evaluation.ALL_METRICS)
    for answer in answers:
        assert answer["scores"] == answers[0]["scores"]
        assert answer["scores"] == pytest.approx(alone["scores"], abs=1e-5)


def test_an_evaluation_that_fails_on_one_rank_fails_on_all_alike(ranks: Ranks, shards: Path):
    for said in ranks.run(badly_evaluated, shards=str(shards)):
        assert said == "the evaluation failed: on 1 of 2 ranks: out of memory"


def test_statistics_of_each_rank_are_averaged_before_they_are_used_or_saved(ranks: Ranks, shards: Path):
    answers = ranks.run(own_statistics, shards=str(shards))
    moving = [name for name in answers[0]["before"] if "running" in name]
    assert moving
    for name in moving:
        one, other = (answer["before"][name] for answer in answers)
        assert not torch.equal(one, other)
        assert torch.allclose(answers[0]["averaged"][name], (one + other) / 2, rtol=1e-6)
    assert equal_on_all_ranks([answer["averaged"] for answer in answers])
    assert equal_on_all_ranks([answer["saved"] for answer in answers])


@pytest.mark.parametrize("rank", range(WORLD))
@pytest.mark.parametrize("where", ["batch", "d/loss", "g/loss", "g/gradient"])
def test_what_is_not_finite_on_one_rank_skips_the_step_of_all_and_names_rank_and_samples(
    where: str, rank: int, ranks: Ranks, shards: Path
):
    answers = ranks.run(faulty_step, shards=str(shards), rank=rank, where=where)
    keys = {number: answer["keys"] for number, answer in enumerate(answers)}
    samples = {"batch": {rank: keys[rank][1:]}, "g/gradient": keys}.get(where, {rank: keys[rank]})
    named = "ranks 0 to 1" if where == "g/gradient" else f"rank {rank}"  # gradients are of all ranks
    for answer in answers:
        assert answer["faults"] == [f"{where} is not finite at step 2 on {named}"]
        assert answer["samples"] == [samples]
        assert answer["moved"] == []
        assert answer["counted"] == {"skipped": 1, "in_a_row": 0}
        assert answer["goes on"]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in answer["end"].values())
    assert equal_on_all_ranks([answer["end"] for answer in answers])


def test_two_ranks_go_back_together_and_on_with_the_photos_behind_those_that_failed(
    ranks: Ranks, shards: Path, tmp_path: Path
):
    answers = ranks.run(gone_back, shards=str(shards), folder=str(tmp_path / "run"))
    for answer in answers:
        assert [step for step, _ in answer["read"]] == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9]
    index = ShardIndex.load(shards, "train")
    order = Loader(DataConfig(), index, seed=0, rank=0, world=1, per_process=GLOBAL_BATCH, device=torch.device("cpu"))
    for place, ((_, first), (_, second)) in enumerate(zip(*(answer["read"] for answer in answers), strict=True)):
        assert [*first, *second] == [index.keys[draw.index] for draw in order.draws(place)]
    lines = [json.loads(line) for line in (tmp_path / "run/faults.jsonl").read_text().splitlines()]
    spoiled = [answers[1]["read"][call][1][0] for call in (5, 6)]
    assert [(line["step"], line["ranks"], line["samples"]) for line in lines] == [
        (step, [1, 1], {"1": [key]}) for step, key in zip((6, 7), spoiled, strict=True)
    ]
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("back to ") == 1 and "batch is not finite at step 6 on rank 1" in log


@pytest.mark.parametrize(
    "sizes",
    [
        [[2, 3, 4, 5], [2, 3, 4, 5]],
        [[3, 3, 4, 5], [1, 3, 2, 7]],
        [[1, 3, 1, 1], [1, 3, 1, 1]],
        [[4, 3, 1, 1], [1, 3, 1, 1]],
    ],
    ids=["even", "uneven", "one-pixel", "uneven-pixels"],
)
def test_our_batch_norm_over_ranks_is_torchs_over_the_whole_batch(sizes: list[list[int]], ranks: Ranks):
    for answer in ranks.run(normalised, sizes=sizes, dtype="float64", mean=0.3, spread=1.5):
        # Two pixels a channel are normalised to -1 and 1 whatever they are: their gradients are differences of nearly
        # equal numbers.
        assert all(difference < 1e-12 for difference in answer.values()), answer


def test_batch_norm_over_ranks_keeps_a_small_variance_around_a_large_mean(ranks: Ranks):
    """The mean of squares less the square of the mean would be below zero here, and its root not a number."""
    for answer in ranks.run(normalised, sizes=[[4, 3, 8, 8]] * 2, dtype="float32", mean=300.0, spread=0.05):
        assert answer["output"] < 2e-3, answer
        assert answer["running variance"] < 1e-6, answer


def test_collectives_give_every_rank_the_same(ranks: Ranks):
    first, second = ranks.run(collectives)
    assert (first["main"], second["main"]) == (True, False)
    for answer in (first, second):
        assert answer["mean"] == [1.5, 15.0]
        assert answer["largest"] == [2.0, 20.0]
        assert answer["sum"] == [3.0, 30.0]
        assert answer["share"] == {"of": 0, "path": Path("x")}
        assert answer["gather"] == [[0], [1]]
    alone = collectives(ALONE)
    assert alone["gather"] == [[0]]
    assert alone["mean"] == alone["largest"] == alone["sum"] == [1.0, 10.0]


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
