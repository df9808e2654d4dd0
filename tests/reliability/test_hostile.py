"""Files that somebody made to do harm: none runs code, reads or writes elsewhere, hangs, or takes memory.

Each is met in a process of its own, by the door that a user would open it by, and ends in one clear error. Hostile
shards are in test_data.py and tests/data/test_shards.py.
"""

import hashlib
import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inpaint_dist import checkpoint
from inpaint_dist.checkpoint import MANIFEST, STATE
from inpaint_dist.config import to_json
from inpaint_dist.models import AOTConfig, FFCResNetConfig, UNetConfig

DEEP = "[" * 200_000
MEGABYTES, SECONDS = 300, 5
WATCHED = """
import os, resource, sys, time
started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from inpaint_dist import cli, evaluate, inpaint, train
main = {{"train": train.main, "inpaint": inpaint.main, "evaluate": evaluate.main}}[{verb!r}]
code = cli.run(main, {words!r})
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"\\ncost {{time.process_time() - started:.2f}} {{grown:.0f}}", flush=True)
os._exit(code)
"""


class Boobytrap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


# ------------------------------------------------------------------------------------- what they make


def weights_of(config: Any) -> dict[str, torch.Tensor]:
    return dict(UNetConfig(channels=(4, 8)).build().state_dict() if config is None else config.build().state_dict())


def generator(path: Path, config: object, weights: Mapping[str, torch.Tensor] | None = None) -> Path:
    """A generator's file that claims to be of this config, which may be a text."""
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(dict(weights or weights_of(None)), path, {"kind": "inpaint_dist generator 1", "generator": text})
    return path


def claims(config: Any, **changed: object) -> dict[str, object]:
    return {**to_json(config), **changed}


def raw(path: Path, header: bytes, length: int | None = None, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def pickled(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Boobytrap(path.with_name("was-here"))))
    return path


def saved_by_torch(path: Path) -> Path:
    torch.save({"features.0.weight": Boobytrap(path.with_name("was-here"))}, path)
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


AOT = AOTConfig(base_channels=4, blocks=1)
BIG = b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
GENERATORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pickle": (pickled, "cannot be read as safetensors"),
    "a pickle of torch": (saved_by_torch, "cannot be read as safetensors"),
    "a pipe": (a_pipe, "no such file"),
    "a header of exabytes": (lambda p: raw(p, b"{}", 2**62), "its header claims"),
    "a header of 90 MB": (lambda p: raw(p, b" " * (90 << 20)), "its header claims"),
    "a header too deep": (lambda p: raw(p, DEEP.encode()), "cannot be read as safetensors"),
    "a tensor of terabytes": (lambda p: raw(p, BIG), "cannot be read as safetensors"),
    "another type": (lambda p: generator(p, claims(UNetConfig(), type="os.system")), "type 'os.system' is not one of"),
    "a discriminator": (lambda p: generator(p, {"type": "PatchDiscriminatorConfig"}), "is not one of"),
    "no config": (lambda p: generator(p, "7"), "does not say which generator it holds"),
    "a config too deep": (lambda p: generator(p, DEEP), "nested too deep"),
    "a config with more": (lambda p: generator(p, claims(UNetConfig(), shell="rm")), "has no shell"),
    "channels of terabytes": (
        lambda p: generator(p, claims(UNetConfig(), channels=[4, 1 << 40])),
        "fit another network",
    ),
    "channels that are words": (lambda p: generator(p, claims(UNetConfig(), channels="ab")), "generator.safetensors"),
    "channels beyond all numbers": (
        lambda p: generator(p, claims(UNetConfig(), channels=[10**30, 10**30])),
        "fit another network",
    ),
    "a billion blocks": (lambda p: generator(p, claims(AOT, blocks=10**9), weights_of(AOT)), "fit another network"),
    "a billion halvings": (
        lambda p: generator(p, claims(FFCResNetConfig(), halvings=10**9)),
        "give at most 16",
    ),
    "a hundred thousand levels": (
        lambda p: generator(p, claims(UNetConfig(), channels=[4] * 10**5)),
        "fit another network",
    ),
}

VGG16: dict[str, Callable[[Path], Path]] = {
    "a pickle": pickled,
    "a pickle of torch": saved_by_torch,
    "a text": lambda p: p.write_text("<html>" * 99) and p,
}


def edited(folder: Path, name: str, edit: Callable[[dict], object]) -> None:
    """A file of a checkpoint changed, and its manifest with it, by somebody who knows how."""
    plain = json.loads((folder / name).read_text())
    edit(plain)
    (folder / name).write_text(json.dumps(plain))
    signed(folder)


def signed(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def with_file(folder: Path, name: str) -> None:
    """A manifest that lists one more file, wherever that is, with its true checksum."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = None
    (folder / MANIFEST).write_text(json.dumps(manifest))
    signed(folder)


def linked(folder: Path, name: str) -> None:
    """A file of the checkpoint moved elsewhere, with a link in its place."""
    elsewhere = folder.parents[2] / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)


def rewritten(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    make(folder / name)
    signed(folder)


def outside(folder: Path) -> str:
    save_file({"x": torch.zeros(3)}, folder.parents[2] / "secret.safetensors")
    return "../../../secret.safetensors"


STATES: dict[str, Callable[[dict], object]] = {
    "a step below zero": lambda s: s["trainer"].update(step=-5),
    "a step beyond all": lambda s: s["trainer"].update(step=10**18),
    "a step that is a word": lambda s: s["trainer"].update(step="rm -rf"),
    "no step": lambda s: s["trainer"].pop("step"),
    "no trainer": lambda s: s.pop("trainer"),
    "batches passed over beyond all": lambda s: s.update(passed_over=10**18),
    "batches passed over below zero": lambda s: s.update(passed_over=-3),
    "scores that are words": lambda s: s.update(best={"step": "../../x", "psnr": "high"}),
    "bad samples of another kind": lambda s: s.update(bad_samples=[["one"]]),
    "health of another kind": lambda s: s.update(health=[1]),
    "steps that are infinite": lambda s: s.update(total_steps=float("inf")),
}
CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        name: (lambda folder, edit=edit: edited(folder, STATE, edit), "not a checkpoint of this run")
        for name, edit in STATES.items()
    },
    "a state too deep": (lambda f: rewritten(f, STATE, lambda p: p.write_text(DEEP)), "nested too deep"),
    "a state of 20 MB": (
        lambda f: rewritten(f, STATE, lambda p: p.write_text(json.dumps({"x": "y" * (20 << 20)}))),
        "more than the",
    ),
    "a manifest too deep": (lambda f: (f / MANIFEST).write_text(DEEP), "nested too deep"),
    "a manifest that is a pipe": (lambda f: (f / MANIFEST).unlink() or os.mkfifo(f / MANIFEST), "is no plain file"),
    "a state that is a pipe": (lambda f: (f / STATE).unlink() or os.mkfifo(f / STATE), "missing from the checkpoint"),
    "a file outside": (lambda f: with_file(f, outside(f)), "is not the name of a checkpoint's file"),
    "a file by its full path": (lambda f: with_file(f, str(f.parents[2] / outside(f)[9:])), "is not the name of a"),
    "a pickle by name": (lambda f: pickled(f / "more.pt") and with_file(f, "more.pt"), "is not the name of a"),
    "weights behind a link": (lambda f: linked(f, "ema.safetensors"), "ema.safetensors: is no plain file"),
    "a state behind a link": (lambda f: linked(f, STATE), "state.json: is no plain file"),
    "a pickle in the weights' place": (lambda f: rewritten(f, "ema.safetensors", pickled), "cannot be read as safe"),
    "a header of exabytes": (
        lambda f: rewritten(f, "ema.safetensors", lambda p: raw(p, b"{}", 2**62)),
        "its header claims",
    ),
    "other shapes": (
        lambda f: rewritten(f, "generator.safetensors", lambda p: save_file({"x": torch.zeros(3)}, p)),
        "not a checkpoint of this run",
    ),
    "moments of a parameter that is not there": (
        lambda f: rewritten(f, "optimizer_g.safetensors", lambda p: save_file({"999.exp_avg": torch.zeros(3)}, p)),
        "not a checkpoint of this run",
    ),
    "a group missing": (
        lambda f: edited(f, MANIFEST, lambda m: m["files"].pop("ema.safetensors")),
        "not a checkpoint of this run",
    ),
}
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a config too deep": (lambda run: (run / "config.json").write_text(DEEP), "holds files but no run"),
    "a config of another type": (
        lambda run: (run / "config.json").write_text(
            (run / "config.json").read_text().replace('"UNetConfig"', '"os.system"')
        ),
        "another network: never",
    ),
    "a history too deep": (
        lambda run: (run / "history.jsonl").write_text(f'{DEEP}\n{{"step": 9, "g/loss": 1}}\n'),
        "not a line of a run's history",
    ),
}
assert sum(map(len, (GENERATORS, VGG16, CHECKPOINTS, FOLDERS))) >= 50


# ------------------------------------------------------------------------------------- what must become of it


def refused(nursery: Any, folder: Path, verb: str, *words: str, says: str, code: int = 1) -> None:
    """The verb ends with this code and one error, in CPU-seconds and megabytes, and nothing was unpickled."""
    code_of = WATCHED.format(verb=verb, words=list(words))
    ranks = nursery.start(folder / "unused", code=code_of)
    assert ranks.ended(60) in ([code], [1]), ranks.said()
    said = ranks.said()
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and len(errors[0]) < 1000, said[:5000]
    assert says in said, said
    seconds, megabytes = map(float, said.splitlines()[-1].removeprefix("cost ").split())
    assert megabytes < MEGABYTES, said
    assert seconds < SECONDS, said
    assert not list(folder.rglob("was-here"))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_hostile_generator_is_refused(name: str, nursery: Any, tmp_path: Path):
    make, says = GENERATORS[name]
    path = make(tmp_path / "generator.safetensors")
    for word in ("image", "mask"):
        cv2.imwrite(str(tmp_path / f"{word}.png"), np.zeros((32, 32), np.uint8))
    words = [str(word) for name in ("image", "mask") for word in (f"--{name}", tmp_path / f"{name}.png")]
    words += ["--out", str(tmp_path / "out.png")]
    refused(nursery, tmp_path, "inpaint", str(path), *words, says=says)


@pytest.mark.parametrize("name", VGG16)
def test_hostile_weights_of_vgg16_are_refused(name: str, nursery: Any, shards: Path, tmp_path: Path):
    path = VGG16[name](tmp_path / "vgg16.pth")
    words = ["--objective.perceptual-weight", "1", "--objective.perceptual.weights", str(path)]
    flags = ("unet", "--shards", str(shards), "--output-dir", str(tmp_path / "run"), *nursery.tiny, "--cpu", *words)
    refused(nursery, tmp_path, "train", *flags, says="vgg16.pth: not a file of weights")


@pytest.fixture(scope="module")
def a_run(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with one checkpoint."""
    run = tmp_path_factory.mktemp("attacked") / "run"
    assert warm.start(run, "--max-steps", "2", "--checkpoint-every", "2", "--keep-checkpoints", "1").ended() == [0]
    assert checkpoint.list_checkpoints(run / "checkpoints") == [run / "checkpoints/step-0000002"]
    return run


def a_copy(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "run")
    return folder / "run"


def go_on(nursery: Any, run: Path) -> list[str]:
    flags = ["unet", "--shards", str(nursery.shards), "--output-dir", str(run), *nursery.tiny, "--cpu"]
    return [*flags, "--global-batch-size", "4", "--workers", "0", "--max-steps", "4", "--report-every", "1"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused_though_its_checksums_fit(name: str, a_run: Path, nursery: Any, tmp_path: Path):
    run = a_copy(a_run, tmp_path)
    spoil, says = CHECKPOINTS[name]
    spoil(run / "checkpoints/step-0000002")
    refused(nursery, tmp_path, "train", *go_on(nursery, run), says=says, code=2)
    assert not (tmp_path / "more.pt").exists()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_run_folder_is_refused(name: str, a_run: Path, nursery: Any, tmp_path: Path):
    run = a_copy(a_run, tmp_path)
    spoil, says = FOLDERS[name]
    spoil(run)
    refused(nursery, tmp_path, "train", *go_on(nursery, run), says=says, code=2)


def test_the_attacked_run_goes_on_where_nobody_attacked_it(a_run: Path, nursery: Any, tmp_path: Path):
    """Without this every test above could pass for a reason of its own."""
    run = a_copy(a_run, tmp_path)
    started = time.monotonic()
    ranks = nursery.start(run, "--max-steps", "4")
    assert ranks.ended() == [0], ranks.said()
    assert "going on from" in ranks.said() and time.monotonic() - started < 60
