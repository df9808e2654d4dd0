"""generator.safetensors and its card: what goes in comes out, and what is not one is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from inpaint_dist.errors import UserError
from inpaint_dist.models import (
    AOTConfig,
    ContextEncoderConfig,
    FFCResNetConfig,
    FFCUNetConfig,
    GatedConfig,
    GeneratorConfig,
    MIGANConfig,
    SeedAutoencoderConfig,
    UNetConfig,
)
from inpaint_dist.recipes import RECIPES
from inpaint_dist.weights import GENERATOR, build_for, export_generator, load_into, read_generator, write_card

CONFIGS = [
    SeedAutoencoderConfig(channels=(4, 6)),
    UNetConfig(channels=(4, 6)),
    FFCUNetConfig(channels=(4, 8), blocks=1),
    FFCResNetConfig(base_channels=2, blocks=1),
    ContextEncoderConfig(size=16, channels=(4, 8), bottleneck=8),
    GatedConfig(base_channels=4, dilations=(2,)),
    AOTConfig(base_channels=4, blocks=1),
    MIGANConfig(channels=(4, 8)),
]


def test_every_recipes_generator_is_tried() -> None:
    assert {type(config) for config in CONFIGS} == {type(recipe.generator) for recipe in RECIPES.values()}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_generator_comes_back_as_it_was(tmp_path: Path, config: GeneratorConfig) -> None:
    weights = config.build().state_dict()
    path = tmp_path / GENERATOR
    export_generator(path, config, weights, recipe="seed", step=12, scores={"psnr": 25.5})
    for source in (tmp_path, path):
        read, tensors, about = read_generator(source)
        assert read == config
        assert tensors.keys() == weights.keys()
        assert all(torch.equal(tensors[name], weights[name]) for name in weights)
        assert (about["recipe"], about["step"], json.loads(about["scores"])) == ("seed", "12", {"psnr": 25.5})
    again = build_for(read, tensors, path)
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert [found.name for found in tmp_path.iterdir()] == [GENERATOR]


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    weights = CONFIGS[0].build().state_dict()
    for _ in range(8):
        export_generator(tmp_path / GENERATOR, CONFIGS[0], weights, recipe="seed", step=1, size=32, licence="é\n\x1f")
        (tmp_path / GENERATOR).rename(tmp_path / f"{len(list(tmp_path.iterdir()))}")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_weights_in_channels_last_are_written_too(tmp_path: Path) -> None:
    config = CONFIGS[0]
    network = config.build()
    network.to(memory_format=torch.channels_last)
    export_generator(tmp_path / GENERATOR, config, network.state_dict())
    _, tensors, _ = read_generator(tmp_path)
    assert all(torch.equal(value, tensors[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("host.os.fsync", OSError("no space left on device")),
        ("weights.save_file", SafetensorError("I/O error: no space left on device")),
    ],
)
def test_an_export_that_fails_names_its_file_and_leaves_the_older_one(
    place: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / GENERATOR, CONFIGS[0]
    export_generator(path, config, config.build().state_dict())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"inpaint_dist.{place}", fail)
    with pytest.raises(UserError, match=r"safetensors: cannot be written \(.*no space left on device\); free space"):
        export_generator(path, config, config.build().state_dict())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_without_a_generator_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; give a run folder"):
        read_generator(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / GENERATOR
    export_generator(path, CONFIGS[0], CONFIGS[0].build().state_dict())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{GENERATOR}: cannot be read as safetensors"):
        read_generator(path)


@pytest.mark.parametrize("metadata", [None, {"kind": "another generator"}])
def test_weights_of_another_kind_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(UserError, match=r"other.safetensors: not a generator of this version"):
        read_generator(tmp_path / "other.safetensors")


def test_a_network_that_is_not_on_the_menu_is_named(tmp_path: Path) -> None:
    path = tmp_path / GENERATOR
    export_generator(path, CONFIGS[0], CONFIGS[0].build().state_dict())
    _, tensors, about = read_generator(path)
    about["generator"] = json.dumps({"type": "MatConfig", "channels": [4]})
    save_file(tensors, path, about)
    with pytest.raises(UserError, match="'MatConfig' is not one of"):
        read_generator(path)


def test_weights_for_another_network_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / GENERATOR
    export_generator(path, CONFIGS[0], CONFIGS[0].build().state_dict())
    for other in (CONFIGS[1], SeedAutoencoderConfig(channels=(4, 8))):
        with pytest.raises(UserError, match=f"{GENERATOR}: its weights fit another network"):
            load_into(other.build(), load_file(path), path)


def test_the_card_says_what_it_is_and_how_to_use_it(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    write_card(card, recipe="unet", parameters=1234567, step=3150, size=256, scores={"psnr": 25.4321})
    text = card.read_text()
    for part in ("`unet`", "1,234,567", "3,150 steps", "256 x 256", "psnr 25.43", f"inpaint {tmp_path} --image"):
        assert part in text
    write_card(card, recipe="unet", parameters=1, step=1, size=32, scores={})
    assert "not evaluated" in card.read_text()
