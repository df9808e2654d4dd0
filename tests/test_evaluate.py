"""The ruler: what is scored, once each, on any number of ranks, said so that it can be done again."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from inpaint_dist import cli, evaluate
from inpaint_dist.evaluate import EvaluateConfig
from inpaint_dist.evaluation import METRICS
from inpaint_dist.metrics.learned import FEATURES, discriminative_scores, kernel_distance_error
from inpaint_dist.models import UNetConfig
from inpaint_dist.weights import GENERATOR, export_generator

SHARED = Path(__file__).parents[2] / "shared"
PEERS = SHARED / "data" / "peers_gt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine photos of odd sizes, each with a mask of its name, and an untrained unet, which is push-pull."""
    y, x = np.mgrid[0:44, 0:50]
    for name in ("photos", "masks", "run"):
        (tmp_path / name).mkdir()
    for number in range(9):
        waves = [127 + 90 * np.sin((x * (number + 1) + y * channel) / 7) for channel in (1, 2, 3)]
        cv2.imwrite(str(tmp_path / "photos" / f"p{number}.png"), np.stack(waves, axis=2).astype(np.uint8))
        mask = np.zeros((44, 50), np.uint8)
        mask[5 : 8 + 4 * number, 5:40] = 255
        cv2.imwrite(str(tmp_path / "masks" / f"p{number}_mask.png"), mask)
    config = UNetConfig(channels=(4, 8))
    export_generator(tmp_path / "run" / GENERATOR, config, config.build().state_dict(), recipe="unet", step=3)
    return tmp_path


def places(folder: Path) -> list[str]:
    return ["--photos", str(folder / "photos"), "--masks", str(folder / "masks"), "--threads", "1", "--cpu"]


def run(folder: Path, *flags: str, out: str = "out.json") -> dict:
    assert cli.run(evaluate.main, [*places(folder), "--out", str(folder / out), *flags]) == 0
    return json.loads((folder / out).read_text())


def complain(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert cli.run(evaluate.main, list(flags)) in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_run_is_scored_whole_and_by_bucket_and_the_same_command_gives_the_same_bytes(folder: Path):
    report = run(folder, str(folder / "run"), "--size", "32")
    whole = report["figures"].pop("all")
    assert whole["photos"] == 9 == sum(part["photos"] for part in report["figures"].values())
    assert set(whole) == {"photos", "mean hole ratio", *METRICS}
    assert all(whole[name]["low"] <= whole[name]["mean"] <= whole[name]["high"] for name in METRICS)
    by_bucket = sum(part["photos"] * part["psnr"]["mean"] for part in report["figures"].values()) / 9
    assert by_bucket == pytest.approx(whole["psnr"]["mean"], abs=1e-4)
    run(folder, str(folder / "run"), "--size", "32", out="again.json")
    assert (folder / "out.json").read_bytes() == (folder / "again.json").read_bytes()


def test_the_report_names_what_was_scored_on_what_and_tells_no_path(folder: Path):
    report = run(folder, str(folder / "run"), "--size", "32")
    context = report["context"]
    assert context["scored"] == GENERATOR
    assert len(context["weights, sha256"]) == len(context["pixels of photos and masks, sha256"]) == 64
    assert (context["photos"], context["masks"], context["pairing"], context["size"]) == ("photos", "masks", "pool", 32)
    assert context["threads"] == 1 and context["versions"]["torch"] == torch.__version__.split("+")[0]
    assert str(folder) not in json.dumps(report)
    mask = cv2.imread(str(folder / "masks" / "p3_mask.png"), cv2.IMREAD_GRAYSCALE)
    for path in (folder / "masks").iterdir():
        cv2.imwrite(str(path), np.roll(mask, 1, axis=0))
    changed = run(folder, str(folder / "run"), "--size", "32")["context"]
    assert changed["pixels of photos and masks, sha256"] != context["pixels of photos and masks, sha256"]


def test_pictures_of_another_system_are_scored_as_they_are_or_pasted(folder: Path):
    (folder / "made").mkdir()
    for number in range(9):
        photo = cv2.imread(str(folder / "photos" / f"p{number}.png"))
        cv2.imwrite(str(folder / "made" / f"p{number}.png"), np.clip(photo.astype(int) + 10, 0, 255).astype(np.uint8))
    flags = ["--outputs", str(folder / "made")]
    as_is, pasted = run(folder, *flags), run(folder, *flags, "--composite", out="pasted.json")
    error = 20 / 255  # ten levels, in the range of [-1, 1]
    figures = as_is["figures"]["all"]
    assert (
        figures["l1"]["mean"] == pytest.approx(error, abs=1e-4) == pytest.approx(figures["hole_l1"]["mean"], abs=1e-4)
    )
    assert figures["psnr"]["mean"] == pytest.approx(20 * math.log10(255 / 10), abs=1e-2)
    ratio = pasted["figures"]["all"]["mean hole ratio"]
    assert pasted["figures"]["all"]["l1"]["mean"] == pytest.approx(error * ratio, abs=1e-4)
    assert as_is["context"]["pictures"] == "as they are" and as_is["context"]["size"] == "each photo's own"
    assert pasted["context"]["pictures"] == "pasted into the hole"


def test_what_does_not_fit_together_is_told(folder: Path, capsys: pytest.CaptureFixture[str]):
    made = folder / "made"
    made.mkdir()
    cv2.imwrite(str(made / "p0.png"), np.zeros((44, 51, 3), np.uint8))
    assert "no picture is named as p1.png, nor as 7 others" in complain(capsys, *places(folder), "--outputs", str(made))
    for number in range(1, 9):
        cv2.imwrite(str(made / f"p{number}.png"), np.zeros((44, 50, 3), np.uint8))
    assert "p0.png has 51x44 pixels and its photo 50x44" in complain(capsys, *places(folder), "--outputs", str(made))
    said = complain(capsys, *places(folder), str(folder / "run"), "--size", "30")
    assert "pictures of 30 pixels" in said and "takes multiples of 4" in said
    assert "no such file" in complain(capsys, *places(folder), str(folder / "nowhere"))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "give RUN or --outputs, or --make-pack"),
        ({"run": Path("r"), "outputs": Path("o")}, "give RUN or --outputs"),
        ({"run": Path("r")}, "give --photos and --masks, or --shards"),
        ({"run": Path("r"), "photos": Path("p")}, "give --photos and --masks, or --shards"),
        ({"outputs": Path("o"), "shards": Path("s")}, "--outputs goes with --photos"),
        ({"run": Path("r"), "shards": Path("s"), "size": 3}, "shards have their own"),
        ({"run": Path("r"), "shards": Path("s"), "composite": True}, "--composite goes with --outputs"),
        ({"run": Path("r"), "shards": Path("s"), "limit": 0}, "--limit 0"),
        ({"run": Path("r"), "pack": Path("k")}, "--pack goes with --photos"),
        (
            {"run": Path("r"), "pack": Path("k"), "photos": Path("p"), "masks": Path("m")},
            "--masks: a pack is scored as",
        ),
        ({"run": Path("r"), "pack": Path("k"), "photos": Path("p"), "limit": 3}, "--limit: a pack is scored as it is"),
        ({"make_pack": Path("k"), "photos": Path("p")}, "give --photos and --masks"),
        ({"make_pack": Path("k"), "shards": Path("s")}, "--shards: --make-pack scores nothing"),
        ({"make_pack": Path("k"), "run": Path("r")}, "RUN: --make-pack scores nothing"),
        ({"make_pack": Path("k"), "metrics": ("fid",)}, "--metrics: --make-pack scores nothing"),
        ({"run": Path("r"), "shards": Path("s"), "metrics": ("psnr", "lpips")}, "--metrics lpips: choose of psnr"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(settings: dict, fault: str):
    with pytest.raises(ValueError, match=fault):
        EvaluateConfig(**settings)


def test_the_val_split_of_shards_is_scored_as_training_scores_it(run_train, shards: Path, tmp_path: Path):
    trained = run_train("--max-steps", "2", "--batch-size", "2")
    last = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()][-1]
    out = tmp_path / "out.json"
    words = [str(trained), "--shards", str(shards), "--threads", "1", "--cpu", "--out", str(out)]
    assert cli.run(evaluate.main, words) == 0
    report = json.loads(out.read_text())
    for name in METRICS:
        assert report["figures"]["all"][name]["mean"] == pytest.approx(last[f"val/{name}"], abs=1e-4)
    assert report["context"]["split"] == "val" and len(report["context"]["fingerprint"]) > 8


def on_two_ranks(words: list[str]) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", "-m", "inpaint_dist.evaluate"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *words], capture_output=True, text=True, check=False, env=environment)


def test_two_ranks_score_as_one_process_does(folder: Path):
    alone = run(folder, str(folder / "run"), "--size", "32")
    done = on_two_ranks([str(folder / "run"), *places(folder), "--size", "32", "--out", str(folder / "two.json")])
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "two.json").read_text()) == alone
    assert done.stdout.count("hole ratio") == 1


# -------------------------------------------------------------------------------------------- packs


def freeze(folder: Path, *flags: str, name: str = "pack") -> Path:
    assert cli.run(evaluate.main, [*places(folder), "--make-pack", str(folder / name), *flags]) == 0
    return folder / name


def packed(folder: Path, *words: str, pack: str = "pack") -> list[str]:
    return [*words, "--pack", str(folder / pack), "--photos", str(folder / "photos"), "--threads", "1", "--cpu"]


def test_a_pack_scores_as_what_it_was_made_of_and_two_runs_give_the_same_bytes(folder: Path):
    before = run(folder, str(folder / "run"), "--size", "32", "--limit", "7")
    pack = freeze(folder, "--size", "32", "--limit", "7")
    shutil.rmtree(folder / "masks")
    cv2.imwrite(str(folder / "photos" / "another.png"), np.zeros((40, 40, 3), np.uint8))
    first, second = folder / "first.json", folder / "second.json"
    for out in (first, second):
        assert cli.run(evaluate.main, packed(folder, str(folder / "run"), "--out", str(out))) == 0
    assert first.read_bytes() == second.read_bytes()
    report = json.loads(first.read_text())
    assert report["figures"] == before["figures"]
    same = ("pixels of photos and masks, sha256", "pairing", "size", "resize", "weights, sha256", "versions")
    assert [report["context"][name] for name in same] == [before["context"][name] for name in same]
    assert report["context"]["pack, sha256"] == hashlib.sha256((pack / "pack.json").read_bytes()).hexdigest()
    assert report["context"]["photos decoded unlike the pack"] == 0
    assert str(folder) not in first.read_text()


def test_two_ranks_score_a_pack_in_the_bytes_of_one_process(folder: Path):
    freeze(folder, "--size", "32")
    words = packed(folder, str(folder / "run"), "--out", str(folder / "alone.json"))
    assert cli.run(evaluate.main, words) == 0
    for name in ("two.json", "again.json"):
        done = on_two_ranks(packed(folder, str(folder / "run"), "--out", str(folder / name)))
        assert done.returncode == 0, done.stderr
        assert (folder / name).read_bytes() == (folder / "alone.json").read_bytes()


def contents(pack: Path) -> dict[str, bytes]:
    return {path.relative_to(pack).as_posix(): path.read_bytes() for path in pack.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [("--size", "32"), ("--pairing", "name")])
def test_a_pack_of_the_same_inputs_is_made_of_the_same_bytes_and_holds_no_photo(folder: Path, flags: tuple[str, ...]):
    one, two = (contents(freeze(folder, *flags, name=name)) for name in ("one", "new/two"))
    assert one == two
    assert set(one) == {"pack.json", *(f"masks/p{number}.png" for number in range(9))}
    about = json.loads(one["pack.json"])
    assert [row["photo"] for row in about["photos"]] == [f"p{number}.png" for number in range(9)]
    mask = cv2.imdecode(np.frombuffer(one["masks/p4.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask.shape == ((32, 32) if "--size" in flags else (44, 50)) and set(np.unique(mask)) == {0, 255}


def test_pictures_of_another_system_are_scored_on_a_pack_at_each_photos_own_size(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    freeze(folder, "--pairing", "name")
    outputs = ["--outputs", str(folder / "photos")]
    assert cli.run(evaluate.main, packed(folder, *outputs, "--out", str(folder / "pack.json"))) == 0
    plain, report = run(folder, *outputs), json.loads((folder / "pack.json").read_text())
    assert report["figures"] == plain["figures"] and report["context"]["size"] == "each photo's own"
    said = complain(capsys, *packed(folder, str(folder / "run")))
    assert "p0 has 50x44 pixels" in said and "takes multiples of 4; --make-pack with a --size" in said


def spoil_a_photo(folder: Path) -> str:
    (folder / "photos" / "p3.png").write_bytes((folder / "photos" / "p4.png").read_bytes())
    return "--photos: p3.png is not the file"


def lose_photos(folder: Path) -> str:
    for name in ("p3.png", "p5.png"):
        (folder / "photos" / name).unlink()
    return "p3.png, which"


def spoil_a_mask(folder: Path) -> str:
    mask = cv2.imread(str(folder / "pack/masks/p2.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(folder / "pack/masks/p2.png"), np.roll(mask, 1))
    return "pack/masks/p2.png was changed"


def lose_a_mask(folder: Path) -> str:
    (folder / "pack/masks/p2.png").unlink()
    return "pack/masks/p2.png: cannot be read (No such file"


def lose_the_list(folder: Path) -> str:
    (folder / "pack/pack.json").unlink()
    return "pack/pack.json: cannot be read (No such file"


def spoil_the_list(folder: Path) -> str:
    (folder / "pack/pack.json").write_text("[1, 2]")
    return "pack/pack.json: not the list of a pack"


def write_another_version(folder: Path) -> str:
    about = json.loads((folder / "pack/pack.json").read_text())
    (folder / "pack/pack.json").write_text(json.dumps(about | {"version": 2}))
    return "made by another version"


SPOILERS = (
    spoil_a_photo, lose_photos, spoil_a_mask, lose_a_mask, lose_the_list, spoil_the_list, write_another_version,
)  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_what_is_not_as_the_pack_was_made_of_is_one_error_that_names_the_file(
    folder: Path, spoil: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
):
    freeze(folder, "--size", "32")
    words = spoil(folder)
    capsys.readouterr()
    said = complain(capsys, *packed(folder, str(folder / "run"), "--out", str(folder / "out.json")))
    assert words in said and said.count("\n") == 1
    assert not (folder / "out.json").exists()


def test_photos_that_decode_to_other_pixels_than_the_packs_are_counted_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    freeze(folder, "--size", "32")
    about = json.loads((folder / "pack/pack.json").read_text())
    about["photos"][4]["pixels sha256"] = "0" * 64
    (folder / "pack/pack.json").write_text(json.dumps(about))
    out = folder / "out.json"
    assert cli.run(evaluate.main, packed(folder, str(folder / "run"), "--out", str(out))) == 0
    assert "note: 1 photos, such as p4.png, are the pack's files but decode to other pixels" in capsys.readouterr().out
    assert json.loads(out.read_text())["context"]["photos decoded unlike the pack"] == 1


def test_a_pack_appears_whole_or_not_at_all_and_never_replaces_anything(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "photos" / "p8.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    making = [*places(folder), "--size", "32", "--make-pack", str(folder / "pack")]
    assert "p8.png" in complain(capsys, *making)
    assert not [path.name for path in folder.iterdir() if "pack" in path.name]
    (folder / "photos" / "p8.png").unlink()
    shutil.copy(folder / "photos" / "p0.png", folder / "photos" / "p0.jpg")
    assert "2 photos are named p0" in complain(capsys, *making)
    (folder / "photos" / "p0.jpg").unlink()
    (folder / "pack.part").mkdir()
    assert "pack.part is there, left by a killed process" in complain(capsys, *making)
    (folder / "pack.part").rmdir()
    before = contents(freeze(folder, "--size", "32"))
    assert "is there already" in complain(capsys, *making)
    assert contents(folder / "pack") == before


# -------------------------------------------------------------------------------------------- learned metrics


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with the official AlexNet and Inception."""
    maker = SHARED / "weights" / "make_torch_home.py"
    if not maker.is_file():
        pytest.skip("the official weights are not beside the project")
    home = tmp_path_factory.mktemp("torch_home")
    subprocess.run([sys.executable, str(maker), str(home), "inception", "alex"], check=True, capture_output=True)
    return home


def test_weights_that_are_nowhere_are_one_error_that_says_how_to_get_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    for metric, file in (
        ("lpips_alex", "alexnet-owt-7be5be79.pth"),
        ("kid", "weights-inception-2015-12-05-6726825d.pth"),
    ):
        said = complain(capsys, *places(folder), str(folder / "run"), "--size", "32", "--metrics", metric)
        assert file in said and "TORCH_HOME" in said and "no network" in said


def test_training_scores_by_learned_metrics_as_the_verb_does_and_trains_as_without_them(
    run_train, shards: Path, tmp_path: Path, official: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(official / "hub"))
    flags = ("--max-steps", "2", "--batch-size", "2", "--eval-every", "1")
    plain = run_train(*flags, name="plain")
    trained = run_train(*flags, "--eval-metrics", "psnr", "lpips_alex", "kid", "--best-by", "kid")
    last = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()][-1]
    assert {name for name in last if name.startswith("val/")} == {"val/psnr", "val/lpips_alex", "val/kid"}
    out = tmp_path / "out.json"
    words = [str(trained), "--shards", str(shards), "--threads", "1", "--cpu", "--out", str(out)]
    assert cli.run(evaluate.main, [*words, "--metrics", "psnr", "lpips_alex", "kid"]) == 0
    figures = json.loads(out.read_text())["figures"]["all"]
    for name in ("psnr", "lpips_alex", "kid"):
        assert figures[name]["mean"] == pytest.approx(last[f"val/{name}"], abs=1e-4)
    weights = "checkpoints/step-0000002/generator.safetensors"
    assert (trained / weights).read_bytes() == (plain / weights).read_bytes()


def test_fid_and_kid_of_the_photos_themselves_are_nothing_and_few_photos_are_said(
    folder: Path, official: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(official / "hub"))
    flags = ["--outputs", str(folder / "photos"), "--size", "64", "--pairing", "name", "--limit", "3"]
    flags += ["--metrics", "fid", "kid", "lpips_alex", "u_ids"]
    figures = run(folder, *flags)["figures"]["all"]
    assert figures["fid"]["value"] == pytest.approx(0, abs=0.01) and figures["fid"]["too few photos"] is True
    assert figures["kid"]["mean"] < 0.001 and figures["kid"]["photos a subset"] == 2
    assert figures["lpips_alex"]["mean"] == 0
    assert figures["u_ids"]["too few photos"] is True
    said = capsys.readouterr().out
    assert "FID of no more than 2,048 photos is biased" in said and "U-IDS say nothing" in said


def test_the_error_of_kid_is_how_far_draws_of_photos_scatter():
    chance = np.random.RandomState(0)
    shared = chance.standard_normal((10, FEATURES))

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes = chance.standard_normal((count, 10))
        others = codes + 0.3 * chance.standard_normal((count, 10)) + 0.2
        return torch.from_numpy(np.maximum(codes @ shared / 3, 0)), torch.from_numpy(np.maximum(others @ shared / 3, 0))

    def distance(photos: torch.Tensor, completions: torch.Tensor) -> float:  # Gretton et al., 2012, eq. 4
        kernel = lambda a, b: (a @ b.T / FEATURES + 1) ** 3  # noqa: E731
        terms = kernel(photos, photos) + kernel(completions, completions)
        terms -= kernel(photos, completions) + kernel(completions, photos)
        return float((terms.sum() - terms.trace()) / (len(photos) * (len(photos) - 1)))

    draws = [draw(120) for _ in range(60)]
    scatter = float(np.std([distance(*drawn) for drawn in draws]))
    assert np.mean([kernel_distance_error(*drawn) for drawn in draws]) == pytest.approx(scatter, rel=0.25)
    many = draw(1500)  # more than a block
    assert kernel_distance_error(*many) < scatter / 2


def test_a_linear_classifier_is_right_on_sets_that_lie_apart_and_guesses_on_alike_ones():
    drawn = np.random.RandomState(0).standard_normal((2, 200, 8))
    photos, others = (torch.from_numpy(part) for part in drawn)
    assert discriminative_scores(photos, photos + 9.0) == (0.0, 0.0)
    paired, unpaired = discriminative_scores(photos, others)
    assert 0.3 < paired < 0.6 and 0.3 < unpaired < 0.6
    half = others + torch.tensor([9.0, 0.0]).repeat(100)[:, None]  # every other completion is told at sight
    assert 0.1 < discriminative_scores(photos, half)[0] < 0.4
    wide = photos[:6].repeat(1, 256)  # few photos, as many features as a trunk gives: no classifier but a guess
    assert discriminative_scores(wide, wide) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("name", "migan", "telea"),
    [("migan_ffhq_256_freeform", 0.181, 0.457), ("migan_places2_256_freeform", 0.224, 0.388)],
)
def test_published_outputs_get_their_known_lpips(
    name: str, migan: float, telea: float, tmp_path: Path, official: Path, monkeypatch: pytest.MonkeyPatch
):
    """MI-GAN's own outputs, as they are, and OpenCV's Telea (radius 5) on the same holes."""
    if not PEERS.is_dir():
        pytest.skip("the peers' outputs are not beside the project")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(official / "hub"))
    for path in (PEERS / name / "image").iterdir():
        mask = next((PEERS / name / "mask").glob(f"{path.stem}.*"))
        holes = (cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) > 127).astype(np.uint8)
        filled = cv2.inpaint(cv2.imread(str(path)), holes, 5, cv2.INPAINT_TELEA)
        cv2.imwrite(str(tmp_path / f"{path.stem}.png"), filled)
    for outputs, expected in ((PEERS / name / "output", migan), (tmp_path, telea)):
        words = [
            "--photos",
            str(PEERS / name / "image"),
            "--masks",
            str(PEERS / name / "mask"),
            "--outputs",
            str(outputs),
        ]
        out = tmp_path / "out" / "report.json"
        assert (
            cli.run(evaluate.main, [*words, "--metrics", "lpips_alex", "--threads", "1", "--cpu", "--out", str(out)])
            == 0
        )
        found = json.loads(out.read_text())["figures"]["all"]["lpips_alex"]["mean"]
        assert found == pytest.approx(expected, abs=0.003)
        out.unlink()
