import dataclasses
import sys
from pathlib import Path

import pytest

from inpaint_dist import cli, train
from inpaint_dist.config import SECTIONS, TrainConfig
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.recipes import RECIPES

FLAGS = """--shards --val-shards --limit --output-dir --epochs --max-steps --batch-size --global-batch-size --lr --lr-d
--lr-schedule --clip-grad --mixed-precision --gradient-accumulation-steps --flip --mask-source --seed --threads
--workers --report-every --sample-every --checkpoint-every --keep-checkpoints --eval-every --best-by --ema-decay
--report-to --overwrite --init-from --dry-run --overfit-one-batch --cpu --sync-batchnorm""".split()


def help_of(recipe: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        train.parse([recipe, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_flag_that_a_practised_user_guesses_is_there(capsys):
    text = help_of("seed", capsys)
    missing = [flag for flag in FLAGS if f"{flag} " not in text and f"{flag}," not in text]
    assert missing == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_says_what_every_option_is(recipe: str, capsys):
    help_of(recipe, capsys)

    def undocumented(owner: type) -> list[str]:
        docs = cli.field_docs(owner)
        return [f"{owner.__name__}.{f.name}" for f in dataclasses.fields(owner) if not docs.get(f.name)]

    config = RECIPES[recipe]
    parts = [config, *(getattr(config, f.name) for f in dataclasses.fields(config))]
    owners = [type(part) for part in parts if dataclasses.is_dataclass(part)]
    assert len(owners) > 5
    assert [name for owner in owners for name in undocumented(owner)] == []


def test_the_names_of_sections_may_be_left_out_and_collide_with_nothing():
    assert train.parse(["unet", "--batch-size", "3"]) == train.parse(["unet", "--data.batch-size", "3"])
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for section in SECTIONS:
        names += [field.name for field in dataclasses.fields(getattr(RECIPES["seed"], section))]
    assert len(names) == len(set(names))


def test_without_a_recipe_the_seed_is_meant_and_flags_change_it():
    assert train.parse([]) == RECIPES["seed"]
    changed = train.parse(["--lr", "0.01", "--generator.channels", "4", "8", "--output-dir", "x"])
    assert changed.recipe == "seed" and changed.trainer.lr == 0.01 and changed.generator.channels == (4, 8)
    assert changed.output_dir == Path("x")


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"'unett': did you mean unet\? The recipes are seed, unet"):
        train.parse(["unett"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bach-size", "3"], "--batch-size"),
        (["--batch-size", "many"], "batch-size"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--batch-size", "1", "--global-batch-size", "2"], "give one of the two"),
        (["--mixed-precision", "int8"], "mixed-precision"),
    ],
)
def test_flags_that_are_wrong_end_with_2_and_name_the_flag(flags: list[str], words: str, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse(flags)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_users_error_is_one_message_without_a_traceback_and_with_debug_it_has_one(capsys):
    def main(argv):
        raise UserError("x.jpg: broken; mend it")

    assert cli.run(main, []) == 1
    assert capsys.readouterr().err == "error: x.jpg: broken; mend it\n"
    with pytest.raises(UserError):
        cli.run(main, ["--debug"])


def test_ctrl_c_is_one_word_and_the_shells_exit_code(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert cli.run(main, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_bugs_keep_their_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main, [])


def test_the_package_itself_imports_nothing_heavy():
    import subprocess

    code = (
        "import sys, inpaint_dist, inpaint_dist.data, inpaint_dist.cli, inpaint_dist.tracking.tracker;"
        "names = {'torch', 'cv2', 'matplotlib', 'wandb', 'webdataset', 'accelerate', 'torchmetrics'};"
        "heavy = names & set(sys.modules);"
        "raise SystemExit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
