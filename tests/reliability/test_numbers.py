"""Numbers that are not finite: the step is skipped without a trace and named; after too many the run goes back."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from inpaint_dist import checkpoint
from inpaint_dist.batch import Batch
from inpaint_dist.faults import UNREAD, Faults, NotFinite, _lerp_by, lerp_unless
from inpaint_dist.launch import Launch
from inpaint_dist.models import (
    FeatureDiscriminatorConfig,
    PatchDiscriminatorConfig,
    SpectralDiscriminatorConfig,
    UNetConfig,
)
from inpaint_dist.recipes import RECIPES
from inpaint_dist.trainer import SMALLEST_SCALE, Trainer, TrainerConfig

pytestmark = pytest.mark.usefixtures("undrawn")

Runner = Callable[..., Path]
Weights = dict[str, torch.Tensor]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLACES = ("batch", "d/loss", "d/gradient", "g/loss", "g/gradient")


JUDGES = {
    "patch": PatchDiscriminatorConfig(channels=(4, 8)),
    "batch norm": FeatureDiscriminatorConfig(channels=(4, 8)),
    "spectral norm": SpectralDiscriminatorConfig(channels=(4, 8), halvings=2),  # its vectors move in each forward
}


def a_trainer(*, precision: str = "no", judge: str = "patch", device: torch.device = CPU, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    networks = (UNetConfig(channels=(4, 8)).build(), JUDGES[judge].build())
    launch = Launch(device, rank=0, world=1, precision=precision, threads=1)  # type: ignore[arg-type]
    return Trainer(TrainerConfig(**settings), *networks, RECIPES["unet"].objective, launch, total_steps=20)


def a_batch(number: int = 0, *, device: torch.device = CPU) -> Batch:
    torch.manual_seed(100 + number)
    image, mask = torch.rand(4, 3, 16, 16) * 2 - 1, (torch.rand(4, 1, 16, 16) > 0.6).float()
    return Batch(image.to(device), mask.to(device), tuple(f"{number}-{sample}" for sample in range(4)))


def all_of(trainer: Trainer) -> Weights:
    """Every tensor that a checkpoint holds."""
    tensors, _ = trainer.state()
    return {f"{group}.{name}": tensor.clone() for group, named in tensors.items() for name, tensor in named.items()}


def differing(a: Weights, b: Weights) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def bad_step(trainer: Trainer, where: str, batch: Batch) -> None:
    """A step with something in it that is not finite."""
    adversarial, hooks = trainer.gan.adversarial, []
    of_d, of_g = adversarial.discriminator, adversarial.generator
    if where == "batch":
        batch.image[1, 0, 0, 0].fill_(float("nan"))  # on a GPU an assignment would be waited for
    elif where == "d/loss":
        adversarial.discriminator = lambda *given: of_d(*given) * float("inf")  # type: ignore[method-assign]
    elif where == "g/loss":
        adversarial.generator = lambda *given: of_g(*given) * float("inf")  # type: ignore[method-assign]
    else:
        network = trainer.discriminator if where.startswith("d") else trainer.generator
        hooks = [next(network.parameters()).register_hook(lambda gradient: gradient * float("nan"))]
    trainer.step(batch)
    adversarial.discriminator, adversarial.generator = of_d, of_g  # type: ignore[method-assign]
    for hook in hooks:
        hook.remove()


# ------------------------------------------------------------------------------------------------ a step


@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"judge": "batch norm"}, {"judge": "spectral norm"}, {"gradient_accumulation_steps": 2}, {"clip_grad": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("where", PLACES)
def test_a_step_with_a_fault_leaves_no_trace_in_any_tensor(where: str, settings: dict[str, Any], first: bool):
    """Weights, moments, averages, statistics of batch norm: the steps after it are those of a run that never met it."""
    trainer, other = a_trainer(**settings), a_trainer(**settings)
    if not first:
        for each in (trainer, other):
            each.step(a_batch(0))
    before = all_of(trainer)
    bad_step(trainer, where, a_batch(1))
    assert differing(before, all_of(trainer)) == []
    other.step_count += 1
    for number in (2, 3):
        for each in (trainer, other):
            each.step(a_batch(number))
    assert differing(all_of(trainer), all_of(other)) == []
    moved = differing(before, all_of(trainer))
    assert {name.split(".")[0] for name in moved} == {"generator", "discriminator", "ema", "optimizer_g", "optimizer_d"}


@pytest.mark.parametrize("where", PLACES)
def test_a_fault_is_told_once_with_its_step_term_and_samples(where: str):
    trainer, batch = a_trainer(), a_batch(1)
    trainer.step(a_batch(0))
    bad_step(trainer, where, batch)
    trainer.step(a_batch(2))
    (fault,) = trainer.faults.look()
    assert str(fault) == f"{where} is not finite at step 2 on rank 0"
    assert fault.samples == {0: ("1-1",) if where == "batch" else batch.keys}
    assert trainer.faults.look() == []
    assert trainer.faults.state() == {"skipped": 1, "in_a_row": 0}


def test_more_faults_in_a_row_than_may_be_freeze_everything_until_a_state_is_loaded():
    trainer = a_trainer(max_skipped_steps=2)
    trainer.step(a_batch(0))
    tensors, state = trainer.state()
    saved = {group: {name: t.clone() for name, t in named.items()} for group, named in tensors.items()}
    for number in (1, 2):
        bad_step(trainer, "batch", a_batch(number))
        assert trainer.faults.stuck_at is None
    trainer.step(a_batch(3))
    assert trainer.faults.state() == {"skipped": 2, "in_a_row": 0}
    before = all_of(trainer)
    for number in (4, 5, 6):
        bad_step(trainer, "g/loss", a_batch(number))
    assert trainer.faults.stuck_at == 7
    trainer.step(a_batch(7))
    assert trainer.faults.stuck_at == 7
    assert differing(before, all_of(trainer)) == []
    trainer.load_state(saved, state)
    assert (trainer.faults.stuck_at, trainer.step_count) == (None, 1)
    trainer.step(a_batch(8))
    assert differing(before, all_of(trainer)) != []
    assert trainer.faults.state() == {"skipped": 0, "in_a_row": 0}


def unread(trainer: Trainer) -> Callable[[], None]:
    """Have nobody read the notes, as on a GPU between two reports; returns what has them read again."""
    real = trainer.faults._read
    trainer.faults._read = lambda: None  # type: ignore[method-assign]
    return lambda: setattr(trainer.faults, "_read", real)


def test_while_nobody_looks_the_same_steps_are_skipped_and_the_same_are_not():
    looking, blind = (a_trainer(max_skipped_steps=1) for _ in range(2))
    read = unread(blind)
    for trainer in (looking, blind):
        for number, where in enumerate(("", "g/loss", "", "d/gradient", "batch", "", "g/gradient")):
            bad_step(trainer, where, a_batch(number)) if where else trainer.step(a_batch(number))
    read()
    assert [str(fault) for fault in blind.faults.look()] == [str(fault) for fault in looking.faults.look()]
    assert blind.faults.stuck_at == looking.faults.stuck_at == 5
    assert differing(all_of(blind), all_of(looking)) == []


def test_a_step_reads_nothing_back_from_the_device():
    """What would make the host wait for a GPU. The two are asked on a CPU alone: whether to undo, and to average."""

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.reads = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.reads += str(func) in ("aten._local_scalar_dense.default", "aten.is_nonzero.default")
            return func(*args, **(kwargs or {}))

    trainer = a_trainer()
    trainer.step(a_batch(0))
    unread(trainer)
    with Count() as count:
        trainer.step(a_batch(1))
    assert count.reads == 2


def test_averages_move_by_a_number_on_the_device_as_they_do_by_one_that_is_known():
    torch.manual_seed(0)
    start, end = ([torch.randn(size) for size in ((3, 4), (5,))] for _ in range(2))
    known, unknown, still = ([tensor.clone() for tensor in start] for _ in range(3))
    lerp_unless(torch.tensor(False), known, end, 0.25)
    _lerp_by(torch.tensor(0.25), unknown, end)
    _lerp_by(torch.tensor(0.0), still, end)
    lerp_unless(torch.tensor(True), still, end, 0.25)
    for a, b, c, d in zip(start, known, unknown, still, strict=True):
        assert torch.allclose(b, c, rtol=1e-6, atol=1e-7)
        assert not torch.equal(a, b)
        assert torch.equal(a, d)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu_the_host_waits_for_no_step_and_a_fault_leaves_no_trace(precision: str):
    trainer = a_trainer(precision=precision, device=GPU, cuda_graphs=False)
    for number in range(3):
        trainer.step(a_batch(number, device=GPU))
    before, scales = all_of(trainer), [scaler.state_dict() for scaler in (trainer._scaler_d, trainer._scaler_g)]
    # In fp16 a gradient that is not finite is the scaler's own business.
    places = ("batch", "g/loss") if precision == "fp16" else PLACES
    batches = [a_batch(number, device=GPU) for number in range(3, 3 + len(places))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for where, batch in zip(places, batches, strict=True):
            bad_step(trainer, where, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert differing(before, all_of(trainer)) == []
    assert scales == [scaler.state_dict() for scaler in (trainer._scaler_d, trainer._scaler_g)]
    assert [fault.term for fault in trainer.faults.look()] == list(places)
    trainer.step(a_batch(9, device=GPU))
    assert differing(before, all_of(trainer)) != []


# ------------------------------------------------------------------------------------------------ fp16's scales


@pytest.mark.parametrize("overflowing", [("d",), ("g",), ("d", "g")], ids=["D only", "G only", "both"])
def test_an_overflow_in_fp16_skips_that_networks_update_and_halves_its_scale_alone(overflowing: tuple[str, ...]):
    trainer = a_trainer(precision="fp16")
    trainer.step(a_batch(0))
    scalers = {"d": trainer._scaler_d, "g": trainer._scaler_g}
    before, scales = all_of(trainer), {name: scaler.get_scale() for name, scaler in scalers.items()}
    networks = {"d": trainer.discriminator, "g": trainer.generator}
    hooks = [next(networks[n].parameters()).register_hook(lambda g: g * float("inf")) for n in overflowing]
    trainer.step(a_batch(1))
    for hook in hooks:
        hook.remove()
    after = all_of(trainer)
    for name, group in (("d", "discriminator"), ("g", "generator")):
        trained = [f"{group}.{parameter}" for parameter, _ in networks[name].named_parameters()]
        still = [parameter for parameter in trained if torch.equal(before[parameter], after[parameter])]
        assert still == (trained if name in overflowing else [])
        assert scalers[name].get_scale() == scales[name] * (0.5 if name in overflowing else 1.0)
    assert trainer.faults.look() == []
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())


@pytest.mark.parametrize("where", ["batch", "d/loss", "g/loss"])
def test_a_fault_in_fp16_leaves_both_scales(where: str):
    """It is no overflow: a smaller scale would not have helped."""
    trainer = a_trainer(precision="fp16")
    trainer.step(a_batch(0))
    before, scales = all_of(trainer), [scaler.state_dict() for scaler in (trainer._scaler_d, trainer._scaler_g)]
    bad_step(trainer, where, a_batch(1))
    assert [scaler.state_dict() for scaler in (trainer._scaler_d, trainer._scaler_g)] == scales
    assert differing(before, all_of(trainer)) == []
    assert len(trainer.faults.look()) == 1


def test_a_gradient_that_overflows_fp16_at_any_scale_is_a_fault():
    """Each such step is skipped: the run would go on without a word and learn nothing."""
    trainer = a_trainer(precision="fp16")
    trainer._scaler_d._scale.fill_(2 * SMALLEST_SCALE)
    bad_step(trainer, "d/gradient", a_batch(0))
    assert trainer.faults.look() == []
    bad_step(trainer, "d/gradient", a_batch(1))
    (fault,) = trainer.faults.look()
    assert str(fault) == "d/gradient is not finite at step 2 on rank 0"


# ------------------------------------------------------------------------------------------------ a run

QUIET = ("--eval-every", "99", "--sample-every", "99", "--report-every", "1", "--batch-size", "2")


def spoil(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int, int], bool]) -> list[tuple[int, tuple[str, ...]]]:
    """Put a NaN into the second photo of the batches that `is_bad(step, call)` names; returns what each call read."""
    real, seen = Trainer.step, []

    def step(self: Trainer, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
        seen.append((self.step_count + 1, batch.keys))
        if is_bad(self.step_count + 1, len(seen)):
            batch.image[1, 0, 0, 0] = float("nan")
        return real(self, batch, **more)

    monkeypatch.setattr(Trainer, "step", step)
    return seen


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved(run: Path, step: int) -> Weights:
    files = (run / "checkpoints" / checkpoint.folder_name(step)).glob("*.safetensors")
    return {f"{path.stem}.{name}": tensor for path in files for name, tensor in load_file(path).items()}


def test_a_run_goes_on_after_a_fault_and_names_the_sample_in_log_and_file(run_train: Runner, monkeypatch):
    seen = spoil(monkeypatch, lambda step, _: step in (3, 4))
    run = run_train("--max-steps", "6", *QUIET)
    log = (run / "log.txt").read_text()
    for step in (3, 4):
        said = f"skipped: batch is not finite at step {step} on rank 0; nothing moved, faults.jsonl names the samples"
        assert log.count(said) == 1
    assert lines(run / "faults.jsonl") == [
        {"step": step, "term": "batch", "ranks": [0, 0], "samples": {"0": [seen[step - 1][1][1]]}} for step in (3, 4)
    ]
    rows = lines(run / "history.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.get("skipped_steps") for row in rows] == [None, None, 1, 2, 2, 2]
    assert rows[2]["g/loss"] is None and rows[4]["g/loss"] is not None
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved(run, 6).values())


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_resumed_before_at_or_after_a_skipped_step_ends_in_the_same_bits(
    stop: int, run_train: Runner, monkeypatch
):
    spoil(monkeypatch, lambda step, _: step in (3, 4))
    same = ("--lr-schedule", "constant", *QUIET)
    whole = run_train("--max-steps", "6", *same, name="whole")
    run_train("--max-steps", str(stop), *same, name="parts")
    parts = run_train("--max-steps", "6", *same, name="parts")
    assert differing(saved(whole, 6), saved(parts, 6)) == []
    states = [json.loads((run / "checkpoints/step-0000006/state.json").read_text()) for run in (whole, parts)]
    assert states[0] == states[1]
    assert states[0]["trainer"]["skipped"] == 2


BACK = ("--checkpoint-every", "4", "--max-skipped-steps", "1", *QUIET)


def test_too_many_faults_in_a_row_take_the_run_back_and_on_with_the_photos_after_them(run_train: Runner, monkeypatch):
    """The photos of steps 6 and 7 do not work: from step 5 on, it is those of 8 and what follows."""
    plain = spoil(monkeypatch, lambda *_: False)
    run_train("--max-steps", "12", *BACK, name="plain")
    order = [keys for _, keys in plain]
    monkeypatch.undo()
    seen = spoil(monkeypatch, lambda _, call: call in (6, 7))
    run = run_train("--max-steps", "8", *BACK)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8]
    assert [keys for _, keys in seen] == order[:11]
    log = (run / "log.txt").read_text()
    where = f"back to {run / 'checkpoints/step-0000004'}, and on with the photos after those of step 7 (return 1 of 2"
    assert log.count(where) == 1
    rows = lines(run / "history.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(math.isfinite(row["g/loss"]) for row in rows)
    state = json.loads((run / "checkpoints/step-0000008/state.json").read_text())
    assert state["passed_over"] == 3
    assert state["trainer"]["skipped"] == 0
    monkeypatch.undo()
    more = spoil(monkeypatch, lambda *_: False)
    run_train("--max-steps", "9", *BACK)
    assert more == [(9, order[11])]


def explode(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """A learning rate of 1e30 at step 5, as often as that: G's weights stay finite, and nothing that they compute."""
    real, done = Trainer._set_learning_rates, []

    def set_rates(self: Trainer) -> None:
        real(self)
        if self.step_count == 4 and len(done) < times:
            done.append(5)
            self.optimizer_g.param_groups[0]["lr"] = 1e30

    monkeypatch.setattr(Trainer, "_set_learning_rates", set_rates)
    return done


def test_a_run_whose_weights_explode_once_goes_back_and_ends_well(run_train: Runner, monkeypatch):
    done = explode(monkeypatch, 1)
    run = run_train("--max-steps", "8", *BACK)
    assert done == [5]
    assert "return 1 of 2" in (run / "log.txt").read_text()
    weights = saved(run, 8)
    assert all(bool(torch.isfinite(tensor).all()) and float(tensor.abs().max()) < 1e6 for tensor in weights.values())


def test_a_run_that_explodes_each_time_gives_up_and_leaves_its_last_whole_checkpoint(
    run_train: Runner, monkeypatch, tmp_path: Path
):
    done = explode(monkeypatch, 99)
    with pytest.raises(NotFinite, match=r"for 2 steps in a row, and going back to .*step-0000004 did not help"):
        run_train("--max-steps", "8", *BACK)
    assert len(done) == 3
    run = tmp_path / "run"
    log = (run / "log.txt").read_text()
    assert log.count(" steps in a row were skipped: back to ") == 2
    assert "--allow-changed" in log.splitlines()[-1]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000004"]
    weights = load_file(run / "generator.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) and float(tensor.abs().max()) < 1e6 for tensor in weights.values())
    monkeypatch.undo()
    run_train("--max-steps", "8", *BACK)
    assert [row["step"] for row in lines(run / "history.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_faults_before_the_first_checkpoint_end_the_run_in_one_line(run_train: Runner, monkeypatch, tmp_path: Path):
    spoil(monkeypatch, lambda step, _: step > 1)
    with pytest.raises(NotFinite, match=r"batch is not finite at step 3 on rank 0.*no checkpoint to go back to"):
        run_train("--max-steps", "8", *BACK)
    assert not (tmp_path / "run/generator.safetensors").exists()


def test_without_patience_the_first_fault_ends_the_run(run_train: Runner, monkeypatch):
    spoil(monkeypatch, lambda step, _: step == 6)
    with pytest.raises(NotFinite, match="for 1 step in a row"):
        run_train("--max-steps", "8", *BACK, "--max-skipped-steps", "0", "--max-rollbacks", "0")


def test_the_run_does_not_go_back_to_what_was_saved_between_skipped_steps(run_train: Runner, monkeypatch):
    """Weights that explode at step 5 are still finite when step 6 is saved."""
    explode(monkeypatch, 1)
    run = run_train("--max-steps", "9", *BACK, "--checkpoint-every", "2", "--max-skipped-steps", "2")
    log = (run / "log.txt").read_text()
    assert "passed over step-0000006: it was saved between the skipped steps" in log
    assert f"back to {run / 'checkpoints/step-0000004'}" in log
    assert (run / "checkpoints/step-0000009").is_dir()


def test_going_back_leads_to_the_same_place_however_seldom_somebody_looks(run_train: Runner, monkeypatch):
    """As on a GPU, where notes are read at reports and every 64 steps."""
    monkeypatch.setattr(Faults, "_is_time", lambda self: len(self._unread) >= UNREAD)
    spoil(monkeypatch, lambda _, call: call in (6, 7))
    seldom = ("--report-every", "99")
    run = run_train("--max-steps", "8", *BACK, *seldom)
    state = json.loads((run / "checkpoints/step-0000008/state.json").read_text())
    assert state["passed_over"] == 3 and state["trainer"]["skipped"] == 0


def test_weights_that_are_not_finite_for_whatever_reason_are_never_saved(run_train: Runner, monkeypatch):
    """Such as those of a memory that failed: the losses of the next step tell, but a save may come before it."""
    real = Trainer.step

    def step(self: Trainer, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
        losses = real(self, batch, **more)
        if self.step_count == 6 and not spoiled:
            spoiled.append(next(self.generator.parameters()).data[0].fill_(float("nan")))
        return losses

    spoiled: list[torch.Tensor] = []
    monkeypatch.setattr(Trainer, "step", step)
    run = run_train("--max-steps", "9", *BACK, "--checkpoint-every", "3", "--max-skipped-steps", "0")
    log = (run / "log.txt").read_text()
    assert "warning: generator." in log and "is not finite: nothing of this step is saved; training goes on" in log
    assert f"back to {run / 'checkpoints/step-0000003'}" in log
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved(run, 9).values())


def test_a_run_that_goes_on_with_a_lower_limit_of_skipped_steps_trains(run_train: Runner, monkeypatch):
    spoil(monkeypatch, lambda _, call: call in (3, 4))
    run_train("--max-steps", "4", *BACK, "--checkpoint-every", "4", "--max-skipped-steps", "3")
    run = run_train("--max-steps", "6", *BACK, "--checkpoint-every", "2", "--max-skipped-steps", "1")
    before, after = saved(run, 4), saved(run, 6)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_saves_between_skipped_steps_do_not_push_out_the_one_to_go_back_to(run_train: Runner, monkeypatch):
    spoil(monkeypatch, lambda _, call: 4 < call < 9)
    run = run_train(
        *("--max-steps", "10", *BACK, "--checkpoint-every", "1", "--keep-checkpoints", "1"),
        *("--max-skipped-steps", "3", "--eval-every", "100"),
    )
    assert f"back to {run / 'checkpoints/step-0000004'}" in (run / "log.txt").read_text()
    assert (run / "checkpoints/step-0000010").is_dir()
