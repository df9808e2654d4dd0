"""What the README tells a stranger to type, typed."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from inpaint_dist import evaluate, train
from inpaint_dist.data.masks import FAMILIES
from inpaint_dist.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- (\w+) -->\s*```bash\n(.+?)\n```", README, re.DOTALL))
TRAINING = re.findall(r"accelerate launch [^`\n]*-m inpaint_dist\.train[^`\n]*", README)
assert BLOCKS.keys() == {"main", "tests", "own", "use", "score"}
assert len(TRAINING) >= 6

SMALL = "--max-steps 2 --generator.channels 4 8 --discriminator.channels 4 8 --report-to none --threads 1"


def run(line: str, folder: Path) -> str:
    """Run a line of the README in a folder, by this interpreter."""
    words = shlex.split(line)
    python = [sys.executable, "-m", "accelerate.commands.launch"]
    words = {"python": [sys.executable], "accelerate": python}[words[0]] + words[1 + (words[0] == "accelerate") :]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_ones_own_photos_in_three_commands_and_a_hole_filled(tmp_path: Path):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(6):
            pixels = np.random.RandomState(number).randint(0, 255, (70, 90, 3)).astype(np.uint8)
            archive.writestr(f"train/images/{number}.png", cv2.imencode(".png", pixels)[1].tobytes())
    for line in BLOCKS["own"].splitlines():
        small = f" {SMALL}" if "inpaint_dist.train" in line else ""
        run(line.replace("--count 1000", "--count 8") + small, tmp_path)
    assert (tmp_path / "runs/mine/plots/losses.png").exists()

    photo = np.random.RandomState(0).randint(0, 255, (45, 61, 3)).astype(np.uint8)
    mask = np.zeros((45, 61), np.uint8)
    mask[10:30, 10:30] = 255
    cv2.imwrite(str(tmp_path / "photo.jpg"), photo)
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    for line in BLOCKS["use"].splitlines():
        run(line, tmp_path)
    filled, given = (cv2.imread(str(tmp_path / name)) for name in ("filled.png", "photo.jpg"))
    assert np.abs(filled[mask == 0].astype(int) - given[mask == 0]).max() <= 3  # two decoders may round differently


def test_the_main_command_trains_on_the_embedded_sample(tmp_path: Path):
    line = BLOCKS["main"].split("&&")[-1].replace(".venv/bin/", "").strip()
    assert line == "accelerate launch -m inpaint_dist.train mend-light"
    said = run(f"{line} --max-steps 1", tmp_path)
    assert "84 photos of 256x256" in said
    assert (tmp_path / "runs/mend-light/generator.safetensors").exists()


@pytest.mark.parametrize("line", TRAINING)
def test_every_training_command_has_flags_that_both_launcher_and_trainer_know(line: str):
    from accelerate.commands.launch import launch_command_parser

    words = shlex.split(line.replace("RECIPE", "seed"))
    at = words.index("-m")
    parsed = launch_command_parser().parse_args([*words[2:at], "-m", *words[at + 1 :]])
    assert parsed.training_script == "inpaint_dist.train"
    flags = words[at + 2 :]
    if "--help" in flags:
        with pytest.raises(SystemExit, match="0"):
            train.parse(flags)
    else:
        train.parse(flags)


@pytest.mark.parametrize("line", BLOCKS["score"].splitlines())
def test_every_scoring_command_has_flags_that_are_known(line: str):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "inpaint_dist.evaluate"]
    config = evaluate.parse(words[3:])
    assert (config.out, config.make_pack) in ((Path("scores.json"), None), (None, Path("mine.pack")))


def test_every_file_that_the_readme_names_is_there():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    named = re.findall(r"(?:tools|inpaint_dist|shards|benchmarks|docs)/[\w/-]+\.\w+|\b\w+\.(?:yaml|sbatch)", README)
    wanted = {*linked, *named}
    assert len(wanted) >= 10
    assert [name for name in sorted(wanted) if not (ROOT / name).exists()] == []
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert len(pages) >= 4
    for page in pages:
        linked = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        assert [name for name in linked if not (page.parent / name).exists()] == [], page.name
    assert {f"docs/{page.name}" for page in pages} <= wanted  # every page is linked from the README


def test_every_recipe_and_mask_family_is_named():
    for name in (*RECIPES, *FAMILIES):
        assert f"`{name}`" in README
