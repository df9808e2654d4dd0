"""generator.safetensors: a generator's weights for use, with what is needed to build it, and its model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from inpaint_dist import checkpoint
from inpaint_dist.config import from_json, generator_from_json, to_json
from inpaint_dist.errors import UserError
from inpaint_dist.host import parse_json, written_whole
from inpaint_dist.models import GeneratorConfig
from inpaint_dist.tensor_files import read_tensors

GENERATOR = "generator.safetensors"
BEST = "generator-best.safetensors"
CARD = "README.md"
CONFIG = "config.json"
"""Of a run, beside its checkpoints."""
AVERAGED = "ema.safetensors"
"""A generator's averaged weights, in a checkpoint."""
_KIND = "inpaint_dist generator 1"


def export_generator(path: Path, config: GeneratorConfig, weights: Mapping[str, Tensor], **about: object) -> None:
    """Write a generator's weights; `about` is told by whoever looks at the file (step, recipe, scores …).

    Raises:
        UserError: where the disk is full or cannot be written; an older file stays as it was.
    """
    metadata = {"kind": _KIND, "generator": json.dumps(to_json(config))}
    metadata |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    try:
        with written_whole(path) as part:
            save_file({name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}, part, metadata)
            _sort_metadata(part)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); free space or mend the disk") from error


def _sort_metadata(path: Path) -> None:
    """Give equal weights equal bytes: safetensors writes the metadata in another order each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def read_generator(source: Path) -> tuple[GeneratorConfig, dict[str, Tensor], dict[str, str]]:
    """Read a generator from its file, a run folder or one of its checkpoints: config, weights, and what is told of it.

    Of a checkpoint, as of a run, they are the averaged weights.

    Raises:
        UserError: where there is none, or the file is damaged or of another kind.
    """
    path = generator_file(source)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder with a {GENERATOR}, or such a file")
    if (path.parent / checkpoint.MANIFEST).is_file():
        return _of_checkpoint(path)
    weights, about = read_tensors(path)
    if about.get("kind") != _KIND:
        raise UserError(f"{path}: not a generator of this version of inpaint_dist (kind {about.get('kind')!r})")
    try:
        return generator_from_json(about["generator"]), weights, about
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: does not say which generator it holds ({error})") from error


def generator_file(source: Path) -> Path:
    """The file of the averaged weights of a run, of one of its checkpoints, or the file itself."""
    if not source.is_dir():
        return source
    return source / (AVERAGED if (source / checkpoint.MANIFEST).is_file() else GENERATOR)


def _of_checkpoint(path: Path) -> tuple[GeneratorConfig, dict[str, Tensor], dict[str, str]]:
    folder, config = path.parent, path.resolve().parents[2] / CONFIG
    step = checkpoint.verify(folder)["step"]
    if path.name != AVERAGED:
        raise UserError(f"{path}: what a run goes on from; give {folder}, whose averaged weights are meant for use")
    weights, _ = read_tensors(path)
    try:
        plain = parse_json(config.read_text())["config"]
        generator = from_json(GeneratorConfig, plain["generator"])
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{config}: does not say which generator {folder.name} is of ({error})") from error
    return generator, weights, {"recipe": str(plain.get("recipe")), "step": str(step)}


def build_for(config: GeneratorConfig, weights: Mapping[str, Tensor], source: Path) -> Any:
    """Build the generator that a file says it holds, with its weights.

    It is drafted first without memory, and no further than the file's weights reach: a file that claims a network of
    terabytes, or of a billion layers, costs nothing.

    Raises:
        UserError: the file holds the weights of another network.
    """
    left = len(weights)

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal left
        del module, name, parameter
        left -= 1
        if left < 0:
            raise UserError(f"it has more than {len(weights)} weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            draft = config.build()
        wanted = {name: list(tensor.shape) for name, tensor in draft.state_dict().items()}
        found = {name: list(tensor.shape) for name, tensor in weights.items()}
        for name in [*wanted, *found]:
            if wanted.get(name) != found.get(name):
                is_, should = found.get(name, "missing"), wanted.get(name, "none")
                raise UserError(f"{name} is {is_}, and in the network {should}")
    except (UserError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{source}: its weights fit another network ({error})") from None
    finally:
        hook.remove()
    network = config.build()
    load_into(network, weights, source)
    return network


def load_into(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Put weights into a network.

    Raises:
        UserError: where they belong to another network.
    """
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{source}: its weights fit another network ({first[:160]})") from error


def write_card(path: Path, *, recipe: str, parameters: int, step: int, size: int, scores: Mapping[str, float]) -> None:
    """Write the model card beside the weights: what it is, what it takes and gives, how it was made."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in scores.items()) or "not evaluated"
    text = f"""# Generator of an inpainting GAN, recipe `{recipe}`

Weights: `{GENERATOR}` (moving average of training, {parameters:,} numbers), after {step:,} steps on {size} x {size}
pixels.

- In: photo (B, 3, H, W), RGB in [-1, 1], 0 in the hole; mask (B, 1, H, W), 1 = hole, 0 = known.
- Out: a whole picture (B, 3, H, W) in [-1, 1]; paste it into the hole.
- Use: `python -m inpaint_dist.inpaint {path.parent} --image PHOTO --mask MASK --out OUT`, or in Python
  `Inpainter.load("{path.parent}")(image, mask)` from `inpaint_dist.inpaint`.
- Validation set: {figures}.
- Fills what the photos it saw teach it to expect; it does not know what was behind the hole.

Made by inpaint_dist; `config.json` and `command.txt` beside this file say how.
"""
    with written_whole(path) as part:
        part.write_text(text)
