"""Filling holes: the known pixels are the photo's own, files and folders, what is said where something is wrong."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from inpaint_dist import cli, inpaint, inpainter
from inpaint_dist.batch import composite, image_from_uint8, image_to_uint8, mask_from_uint8, masked
from inpaint_dist.errors import UserError
from inpaint_dist.inpaint import Inpainter
from inpaint_dist.models import (
    AOTConfig,
    ContextEncoderConfig,
    FFCResNetConfig,
    FFCUNetConfig,
    GatedConfig,
    MIGANConfig,
    SeedAutoencoderConfig,
    UNetConfig,
)
from inpaint_dist.recipes import RECIPES
from inpaint_dist.weights import BEST, GENERATOR, export_generator

SIZES = [(301, 257), (31, 64), (5, 3), (64, 96)]
RECIPE_NAMES = sorted(RECIPES)
SMALL = {
    SeedAutoencoderConfig: {"channels": (4, 6, 8)},
    UNetConfig: {"channels": (4, 6, 8)},
    FFCResNetConfig: {"base_channels": 2, "blocks": 1},
    FFCUNetConfig: {"channels": (4, 8), "blocks": 1},
    ContextEncoderConfig: {"size": 16, "channels": (4, 8), "bottleneck": 8},
    GatedConfig: {"base_channels": 4, "dilations": (2,)},
    AOTConfig: {"base_channels": 4, "blocks": 1},
    MIGANConfig: {"channels": (4, 8)},
}


def export(path: Path, recipe: str, seed: int = 0) -> torch.nn.Module:
    """Write a tiny generator of a recipe with random weights, no layer of them zero."""
    config = RECIPES[recipe].generator
    config = replace(config, **SMALL[type(config)])
    network = config.build()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.3, generator=source)
    export_generator(path, config, network.state_dict(), recipe=recipe, step=1)
    return network.eval()


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.frombuffer(np.random.RandomState(seed).bytes(height * width * 3), np.uint8).reshape(height, width, 3)


def holes(height: int, width: int) -> np.ndarray:
    """A hole that touches two borders, and a pixel alone."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 :, width // 2 :] = 255
    mask[0, 0] = 255
    return mask


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("generators")
    for recipe in RECIPE_NAMES:
        (folder / recipe).mkdir()
        export(folder / recipe / GENERATOR, recipe)
    return {recipe: folder / recipe for recipe in RECIPE_NAMES}


@pytest.fixture
def run_folder(generators: dict[str, Path]) -> Path:
    return generators["unet"]


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def call(run_folder: Path, image: Path, mask: Path, out: Path, *flags: str) -> int:
    words = [str(run_folder), "--image", str(image), "--mask", str(mask), "--out", str(out), "--device", "cpu", *flags]
    try:
        return cli.run(inpaint.main, words)
    except SystemExit as left:  # flags that the config refuses
        return int(str(left.code))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was written to stderr, in one line: flags' messages are wrapped."""
    return " ".join(capsys.readouterr().err.split())


def test_there_are_recipes_to_try() -> None:
    assert {"seed", "unet"} <= set(RECIPE_NAMES)


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_known_pixels_are_the_photos_own_and_holes_are_filled(
    generators: dict[str, Path], recipe: str, size: tuple[int, int]
) -> None:
    image, mask = photo(*size), holes(*size)
    before = image.copy()
    filled = Inpainter.load(generators[recipe], device="cpu")(image, mask)
    assert filled.dtype == np.uint8
    assert filled.shape == image.shape
    assert np.array_equal(filled[mask == 0], image[mask == 0])
    assert (filled[mask > 0] != image[mask > 0]).any()
    assert np.array_equal(image, before)


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_what_lies_under_the_hole_does_not_matter(generators: dict[str, Path], recipe: str) -> None:
    inpainter = Inpainter.load(generators[recipe], device="cpu")
    image, mask = photo(45, 50), holes(45, 50)
    other = np.where(mask[..., None] > 0, photo(45, 50, seed=1), image)
    assert (other != image).any()
    assert np.array_equal(inpainter(image, mask), inpainter(other, mask))


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_a_size_that_fits_is_given_to_the_network_as_it_is(generators: dict[str, Path], recipe: str, tmp_path) -> None:
    image, mask = photo(64, 96), holes(64, 96)
    network = export(tmp_path / "same.safetensors", recipe)
    with torch.inference_mode():
        one, hole = image_from_uint8(torch.tensor(image)[None]), mask_from_uint8(torch.tensor(mask)[None])
        expected = image_to_uint8(composite(network(masked(one, hole), hole), one, hole))[0].numpy()
    assert np.array_equal(Inpainter.load(generators[recipe], device="cpu")(image, mask), expected)


def test_the_same_input_gives_the_same_output(run_folder: Path) -> None:
    image, mask = photo(70, 33), holes(70, 33)
    first, second = (Inpainter.load(str(run_folder), device="cpu")(image, mask) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_photo_without_a_hole_comes_back_as_it_is_in_an_array_of_its_own(run_folder: Path) -> None:
    image = photo(20, 30)
    filled = Inpainter.load(run_folder, device="cpu")(image, np.zeros((20, 30), np.uint8))
    assert np.array_equal(filled, image)
    assert not np.shares_memory(filled, image)


def test_masks_may_be_bool_and_arrays_may_be_views(run_folder: Path) -> None:
    inpainter = Inpainter.load(run_folder, device="cpu")
    image, mask = photo(40, 40), holes(40, 40)
    flipped = inpainter(image[:, ::-1], mask[:, ::-1] > 127)
    assert np.array_equal(flipped, inpainter(image[:, ::-1].copy(), mask[:, ::-1].copy()))


def test_a_large_photo_is_worked_on_around_its_holes(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Inpainter.load(run_folder, device="cpu")
    image, mask = photo(300, 400), np.zeros((300, 400), np.uint8)
    mask[40:60, 200:210] = 255
    monkeypatch.setattr(inpainter, "WHOLE_PIXELS", 1000)
    monkeypatch.setattr(inpainter, "CONTEXT", 24)
    seen: list[tuple[int, ...]] = []
    loaded.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    filled = loaded(image, mask)
    assert seen == [(72, 64)]  # 20 + 2 * 24 = 68 and 10 + 2 * 24 = 58, padded to multiples of 8
    assert np.array_equal(filled[mask == 0], image[mask == 0])
    assert np.array_equal(filled[16:84, 176:234], loaded(image[16:84, 176:234], mask[16:84, 176:234]))


def test_too_little_memory_is_told_as_such(run_folder: Path) -> None:
    inpainter = Inpainter.load(run_folder, device="cpu")

    def refuse(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    inpainter.network.register_forward_pre_hook(refuse)
    with pytest.raises(UserError, match="not enough memory on cpu for 30x20 pixels"):
        inpainter(photo(20, 30), holes(20, 30))


def test_weights_that_give_no_numbers_are_told(tmp_path: Path) -> None:
    network = export(tmp_path / GENERATOR, "unet")
    weights = {name: value * float("nan") for name, value in network.state_dict().items() if value.is_floating_point()}
    weights = network.state_dict() | weights
    export_generator(tmp_path / GENERATOR, replace(RECIPES["unet"].generator, channels=(4, 6, 8)), weights)
    with pytest.raises(UserError, match="not finite"):
        Inpainter.load(tmp_path, device="cpu")(photo(16, 16), holes(16, 16))


@pytest.mark.parametrize(
    ("image", "mask", "fault"),
    [
        (photo(8, 9), holes(9, 8), "the mask is 8x9 and its photo 9x8"),
        (photo(8, 9).astype(np.float32), holes(8, 9), "the photo is float32"),
        (photo(8, 9)[..., 0], holes(8, 9), "not uint8 \\(height, width, 3\\)"),
        (photo(8, 9), holes(8, 9)[..., None], "the mask is uint8"),
        (photo(8, 9), holes(8, 9) // 255, "0 and 1, not 0 and 255"),
        (photo(8, 9), np.full((8, 9), 255, np.uint8), "all hole"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(run_folder: Path, image, mask, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Inpainter.load(run_folder, device="cpu")(image, mask)


def test_the_best_weights_are_taken_on_request(tmp_path: Path) -> None:
    export(tmp_path / GENERATOR, "unet", seed=1)
    with pytest.raises(UserError, match="use --weights latest"):
        Inpainter.load(tmp_path, weights="best", device="cpu")
    export(tmp_path / BEST, "unet", seed=2)
    image, mask = photo(32, 32), holes(32, 32)
    latest, best = (Inpainter.load(tmp_path, weights=which, device="cpu") for which in ("latest", "best"))
    assert (latest(image, mask) != best(image, mask)).any()
    assert np.array_equal(best(image, mask), Inpainter.load(tmp_path / BEST, device="cpu")(image, mask))
    with pytest.raises(UserError, match="needs a run folder"):
        Inpainter.load(tmp_path / BEST, weights="best", device="cpu")


def test_a_gpu_that_is_not_there_is_refused(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda"):
        Inpainter.load(run_folder, device="cuda")


def test_one_photo_is_written_losslessly(run_folder: Path, tmp_path: Path) -> None:
    image, mask = photo(31, 47), holes(31, 47)
    write(tmp_path / "a.png", image)
    write(tmp_path / "m.png", mask)
    assert call(run_folder, tmp_path / "a.png", tmp_path / "m.png", tmp_path / "new" / "out.png") == 0
    filled = np.asarray(Image.open(tmp_path / "new" / "out.png"))
    assert np.array_equal(filled, Inpainter.load(run_folder, device="cpu")(image, mask))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.png"]


def test_inverted_masks_are_black_where_the_hole_is(run_folder: Path, tmp_path: Path) -> None:
    image, mask = write(tmp_path / "a.png", photo(31, 47)), holes(31, 47)
    write(tmp_path / "m.png", mask)
    write(tmp_path / "n.png", 255 - mask)
    assert call(run_folder, image, tmp_path / "m.png", tmp_path / "one.png") == 0
    assert call(run_folder, image, tmp_path / "n.png", tmp_path / "two.png", "--invert-masks") == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_photos_are_turned_upright_and_grey_ones_become_rgb(run_folder: Path, tmp_path: Path) -> None:
    source = Image.fromarray(photo(20, 36))
    exif = source.getexif()
    exif[274] = 6  # stored lying, shown upright: 36 high, 20 wide
    (tmp_path / "in").mkdir()
    source.save(tmp_path / "in" / "turned.png", exif=exif)
    write(tmp_path / "in" / "grey.png", photo(36, 20)[..., 0])
    mask = holes(36, 20)
    write(tmp_path / "m.png", mask)
    assert call(run_folder, tmp_path / "in", tmp_path / "m.png", tmp_path / "out") == 0
    turned, grey = (np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("turned", "grey"))
    assert np.array_equal(turned[mask == 0], np.rot90(photo(20, 36), -1)[mask == 0])
    assert np.array_equal(grey[mask == 0], np.repeat(photo(36, 20)[..., :1], 3, axis=2)[mask == 0])
    write(tmp_path / "m.png", np.rot90(mask).copy())  # drawn on the picture as stored
    assert call(run_folder, tmp_path / "in" / "turned.png", tmp_path / "m.png", tmp_path / "again.png") == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), turned)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos in folders with masks beside them in another; one photo damaged, one of another size, one without mask."""
    for name in ("a.png", "deep/b.png", "odd.png", "alone.png"):
        write(tmp_path / "photos" / name, photo(24, 33))
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    for name in ("a_mask.png", "deep/b.png", "bad.png"):
        write(tmp_path / "masks" / name, holes(24, 33))
    write(tmp_path / "masks" / "odd.png", holes(33, 24))
    return tmp_path


def test_one_bad_photo_does_not_end_a_folder_but_the_exit_code_tells(
    run_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run_folder, folder / "photos", folder / "masks", folder / "out") == 1
    written = sorted(path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.*"))
    assert written == ["a.png", "deep/b.png"]
    said = capsys.readouterr()
    assert "2 of 5 photos filled" in said.out
    assert "alone.png: no mask has its name" in said.err
    assert "odd.png: the mask is 24x33 and its photo 33x24" in said.err
    assert "bad.jpg: a damaged JPEG" in said.err


def test_one_mask_serves_a_folder(run_folder: Path, folder: Path) -> None:
    assert call(run_folder, folder / "photos" / "deep", folder / "masks" / "a_mask.png", folder / "out") == 0
    filled = np.asarray(Image.open(folder / "out" / "b.png"))
    assert np.array_equal(filled[holes(24, 33) == 0], photo(24, 33)[holes(24, 33) == 0])


def test_photos_and_masks_may_share_a_folder(run_folder: Path, tmp_path: Path, capsys) -> None:
    write(tmp_path / "both" / "a.png", photo(24, 33))
    write(tmp_path / "both" / "a_mask.png", holes(24, 33))
    for mask in (tmp_path / "both", tmp_path / "both" / "a_mask.png"):
        assert call(run_folder, tmp_path / "both", mask, tmp_path / "out") == 0
        assert "1 of 1 photos" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_photos_that_would_share_an_output_are_told(run_folder: Path, tmp_path: Path, capsys) -> None:
    for name in ("a.png", "a.bmp"):
        write(tmp_path / "photos" / name, photo(24, 33))
    write(tmp_path / "m.png", holes(24, 33))
    assert call(run_folder, tmp_path / "photos", tmp_path / "m.png", tmp_path / "out") == 1
    assert "a.png: would be written to the same file as a.bmp" in told(capsys)


def test_a_link_to_nowhere_counts_as_a_photo_not_filled(run_folder: Path, folder: Path, capsys) -> None:
    (folder / "photos" / "deep" / "lost.png").symlink_to(folder / "nowhere.png")
    assert call(run_folder, folder / "photos" / "deep", folder / "masks", folder / "out") == 1
    assert "lost.png: cannot be read" in told(capsys)


def test_inputs_are_never_written_over(run_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, masks = folder / "photos", folder / "masks"
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    for image, out in ((photos, photos), (photos, photos / "out"), (photos, masks), (photos / "a.png", photos)):
        assert call(run_folder, image, masks / "a_mask.png", out) != 0
    for out in (photos / "a.png", masks / "a_mask.png"):
        assert call(run_folder, photos / "a.png", masks / "a_mask.png", out) == 2
        assert "would replace an input" in told(capsys)
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize("out", ["out.jpg", "out.webp"])
def test_an_output_that_loses_pixels_is_refused(run_folder: Path, folder: Path, out: str, capsys) -> None:
    assert call(run_folder, folder / "photos" / "a.png", folder / "masks" / "a_mask.png", folder / out) == 2
    assert "name a .png file" in told(capsys)
    assert not (folder / out).exists()


def test_a_folder_of_photos_needs_a_folder_for_its_output(run_folder: Path, folder: Path, capsys) -> None:
    for image in (folder / "photos", folder / "photos" / "*.png"):
        assert call(run_folder, image, folder / "masks", folder / "out.png") == 2
        assert "is more than one photo, so name a folder" in told(capsys)


@pytest.mark.parametrize("image", ["not-there.jpg", "not-there.zip", "not-there"])
def test_a_photo_that_is_not_there_is_named_where_one_file_is_to_be_written(
    run_folder: Path, folder: Path, image: str, capsys
) -> None:
    assert call(run_folder, folder / image, folder / "masks" / "a_mask.png", folder / "out.png") == 1
    assert f"--image {folder / image}: no such file or folder" in told(capsys)
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize("place", ["--image", "--mask", "RUN"])
def test_what_is_not_there_is_named(run_folder: Path, folder: Path, place: str, capsys) -> None:
    places = {"RUN": run_folder, "--image": folder / "photos", "--mask": folder / "masks"}
    places[place] = folder / "not-there"
    assert call(*places.values(), folder / "out") == 1
    assert "not-there" in told(capsys)
    assert not (folder / "out").exists()


def test_a_damaged_weights_file_is_told(folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cut.safetensors").write_bytes((run_folder / GENERATOR).read_bytes()[:-100])
    assert call(folder / "cut.safetensors", folder / "photos", folder / "masks", folder / "out") == 1
    assert "cut.safetensors: cannot be read as safetensors" in told(capsys)


def test_an_output_that_cannot_be_written_is_told_and_leaves_nothing(run_folder: Path, folder: Path, capsys) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "deep").write_text("a file where a folder has to be")
    assert call(run_folder, folder / "photos", folder / "masks", folder / "out") == 1
    assert "cannot be written" in told(capsys)
    assert not [*(folder / "out").glob(".*"), *(folder / "out").glob("*.part")]


def test_masks_that_look_the_wrong_way_round_get_a_hint(run_folder: Path, tmp_path: Path, capsys) -> None:
    write(tmp_path / "a.png", photo(24, 33))
    write(tmp_path / "m.png", 255 - cv2.resize(np.eye(5, dtype=np.uint8) * 255, (33, 24)))
    assert call(run_folder, tmp_path / "a.png", tmp_path / "m.png", tmp_path / "out.png") == 0
    assert "did you mean --invert-masks?" in told(capsys)
