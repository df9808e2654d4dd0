"""The step's benchmark runs on tiny pictures; its bare loops do the trainer's work; what they dispatch is counted."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from inpaint_dist import cli
from inpaint_dist.models import PatchDiscriminatorConfig, SeedAutoencoderConfig, UNetConfig
from inpaint_dist.recipes import SEED, UNET

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The benchmark, with recipes of few channels."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(importlib.import_module("benchmarks.report"), "RESULTS", tmp_path)
    module = importlib.import_module("benchmarks.step")
    discriminator = PatchDiscriminatorConfig(channels=(4, 8))
    small = {
        "seed": replace(SEED, generator=SeedAutoencoderConfig(channels=(4, 8)), discriminator=discriminator),
        "unet": replace(UNET, generator=UNetConfig(channels=(4, 8)), discriminator=discriminator),
    }
    monkeypatch.setattr(module, "RECIPES", small)
    return module


def test_both_recipes_are_timed_against_both_loops(benchmark: ModuleType, tmp_path: Path, capsys) -> None:
    assert cli.run(benchmark.main, ["--size", "32", "--batch-size", "2", "--rounds", "1"]) == 0
    report = json.loads((tmp_path / "step-cpu.json").read_text())
    assert set(report["figures"]) == {"unet", "seed"}
    for figures in report["figures"].values():
        assert set(figures["seconds a step"]) == {"trainer", "careful loop", "naive loop"}
        assert min(figures["seconds a step"].values()) > 0
        assert set(figures["seconds of the trainer for one of"]) == {"careful loop", "naive loop"}
        work = figures["GFLOP an image"]
        assert work["trainer"] == work["careful loop"] < work["naive loop"]
        operations = figures["aten operations a step"]
        assert operations["careful loop"] < operations["trainer"] < operations["naive loop"]
        # what only a GPU can tell is not there
        assert not [name for name in figures if "bf16" in name or "MiB" in name]
    assert report["context"]["bf16_product_tflops"] is None
    assert "unet, batch 2 of 32 pixels on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["seed", "unet"])
def test_the_bare_loops_train_as_the_trainer_does(benchmark: ModuleType, name: str) -> None:
    """Three steps give the same losses, so that a ratio of times compares equal work."""
    batch = benchmark.a_batch(2, 32, torch.device("cpu"))
    steps, _ = benchmark.build(benchmark.RECIPES[name], benchmark.StepBenchmark(size=32).launch, batch)
    for _ in range(2):
        losses = {way: step(batch) for way, step in steps.items()}
        for key in ("d/loss", "g/loss"):
            expected = losses["trainer"][key].item()
            assert [way[key].item() for way in losses.values()] == pytest.approx([expected] * 3, rel=1e-3)


def test_a_loop_that_does_other_work_is_not_timed(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "label_loss", lambda scores, label: (scores - label).abs().mean())
    batch = benchmark.a_batch(2, 32, torch.device("cpu"))
    with pytest.raises(AssertionError, match="careful loop: first d/loss"):
        benchmark.build(benchmark.RECIPES["unet"], benchmark.StepBenchmark(size=32).launch, batch)


def test_operations_are_counted_one_by_one(benchmark: ModuleType) -> None:
    layer, values = nn.Linear(3, 2), torch.ones(4, 3)
    with benchmark.Operations() as counted, torch.no_grad():
        (layer(values) + 1.0).relu()
    assert counted.by_name == {
        "aten.t.default": 1,
        "aten.addmm.default": 1,
        "aten.add.Tensor": 1,
        "aten.relu.default": 1,
    }
    assert counted.total() == 4


@pytest.mark.parametrize(("flag", "value"), [("--size", "100"), ("--rounds", "0"), ("--steps", "0")])
def test_flags_that_cannot_be_meant_are_refused(benchmark: ModuleType, flag: str, value: str, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.run(benchmark.main, [flag, value])
    assert f"{flag} {value}" in capsys.readouterr().err
