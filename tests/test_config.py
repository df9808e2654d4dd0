import dataclasses
import json
from pathlib import Path

import pytest

from inpaint_dist.config import TrainConfig, from_json, interval, shaping, to_json
from inpaint_dist.errors import UsageError, UserError
from inpaint_dist.losses.adversarial import AdversarialConfig, HingeConfig, NonSaturatingConfig
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.models import FeatureDiscriminatorConfig, PatchDiscriminatorConfig, UNetConfig
from inpaint_dist.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_the_way_to_json_and_back(name: str):
    assert RECIPES[name].recipe == name
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(RECIPES[name])))) == RECIPES[name]


def test_paths_and_another_recipes_generator_survive_too():
    config = dataclasses.replace(RECIPES["seed"], output_dir=Path("a/b"), generator=UNetConfig(channels=(1, 2)))
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_a_config_of_another_version_is_refused_by_the_name_that_does_not_fit():
    plain = to_json(RECIPES["seed"])
    with pytest.raises(UserError, match="TrainConfig has no novelty"):
        from_json(TrainConfig, plain | {"novelty": 1})
    with pytest.raises(UserError, match="'TransformerConfig' is not one of"):
        from_json(TrainConfig, plain | {"generator": {"type": "TransformerConfig"}})


def test_what_may_change_on_resume_does_not_shape_the_run_and_the_rest_does():
    before = shaping(RECIPES["seed"], dataset="x", global_batch=8)
    freely = dataclasses.replace(
        RECIPES["seed"],
        epochs=99,
        checkpoint_every=3,
        eval_metrics=("psnr", "lpips_alex"),
        data=dataclasses.replace(RECIPES["seed"].data, workers=7, batch_size=4),
        tracking=dataclasses.replace(RECIPES["seed"].tracking, report_every=1),
    )
    assert shaping(freely, dataset="x", global_batch=8) == before
    for change in (
        {"seed": 1},
        {"generator": UNetConfig()},
        {"trainer": dataclasses.replace(RECIPES["seed"].trainer, lr=1e-3)},
        {"data": dataclasses.replace(RECIPES["seed"].data, mask_source="pool")},
    ):
        assert shaping(dataclasses.replace(RECIPES["seed"], **change), dataset="x", global_batch=8) != before
    assert shaping(RECIPES["seed"], dataset="y", global_batch=8) != before
    assert shaping(RECIPES["seed"], dataset="x", global_batch=16) != before


@pytest.mark.parametrize("adversarial", [NonSaturatingConfig(), HingeConfig()])
def test_a_loss_of_raw_scores_is_refused_on_squashed_ones(adversarial: AdversarialConfig):
    objective = ObjectiveConfig(adversarial=adversarial)
    with pytest.raises(UsageError, match=r"--discriminator\.sigmoid: (NonSaturating|Hinge) wants raw scores"):
        TrainConfig(objective=objective, discriminator=PatchDiscriminatorConfig(sigmoid=True))
    for raw in (PatchDiscriminatorConfig(sigmoid=False), FeatureDiscriminatorConfig()):
        assert TrainConfig(objective=objective, discriminator=raw).discriminator == raw


@pytest.mark.parametrize(("total", "every"), [(5, 1), (315, 31), (35_000, 1000)])
def test_intervals_suit_short_and_long_runs(total: int, every: int):
    assert interval(None, total) == every
    assert interval(7, total) == 7


@pytest.mark.parametrize("field", ["epochs", "max_steps", "checkpoint_every", "keep_checkpoints", "eval_every"])
def test_counts_below_one_are_refused_by_their_flag(field: str):
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} 0"):
        TrainConfig(**{field: 0})


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"best_by": "fid"}, "--best-by fid: not among --eval-metrics psnr ssim"),
        ({"eval_metrics": ("lpips_alex", "fid")}, "--best-by psnr: not among --eval-metrics lpips_alex fid; name one"),
        ({"eval_metrics": ()}, r"--eval-metrics \(none\)"),
    ],
)
def test_what_is_best_is_decided_by_a_metric_that_is_computed(settings: dict, fault: str):
    with pytest.raises(UsageError, match=fault):
        TrainConfig(**settings)


def test_the_run_folder_is_named_after_the_recipe():
    assert RECIPES["unet"].run_folder == Path("runs/unet")
    assert dataclasses.replace(RECIPES["unet"], output_dir=Path("x")).run_folder == Path("x")
