"""Metrics by networks that others trained: LPIPS, FID, KID and IDS, by torchmetrics, torch-fidelity and scikit-learn
(extra `eval`)."""

import warnings
from importlib.util import find_spec
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inpaint_dist.batch import Image, image_to_uint8
from inpaint_dist.errors import UserError
from inpaint_dist.pretrained import ALEXNET, INCEPTION, VGG16, Pretrained, find_pretrained

LPIPSNetwork: TypeAlias = Literal["alex", "vgg"]
LPIPS_WEIGHTS: dict[LPIPSNetwork, Pretrained] = {"alex": ALEXNET, "vgg": VGG16}

FEATURES = 2048
"""Numbers of an image's Inception features; fewer images than that give a covariance without full rank."""

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000

Features: TypeAlias = Float[Tensor, "images 2048"]


class LPIPS:
    """Learned perceptual distance of two pictures, 0 = the same (Zhang et al., The Unreasonable Effectiveness of Deep
    Features, 2018, version 0.1)."""

    def __init__(self, network: LPIPSNetwork, device: torch.device) -> None:
        """Load the network.

        Raises:
            UserError: torchvision is not installed, or the weights are nowhere.
        """
        _need("torchvision", "LPIPS")
        find_pretrained(LPIPS_WEIGHTS[network])  # before torchvision asks the web for them without a word
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self._network = LearnedPerceptualImagePatchSimilarity(network).net.to(device).eval()

    def __call__(self, result: Image, image: Image) -> Float[Tensor, " batch"]:
        """One distance an image, of pictures in [-1, 1], in float64."""
        return self._network(result, image).double().flatten()


class Inception:
    """The features that FID, KID and IDS compare: images → (B, 2048), in float64."""

    def __init__(self, device: torch.device) -> None:
        """Load the network.

        Raises:
            UserError: torch-fidelity is not installed, or the weights are nowhere.
        """
        _need("torch_fidelity", "FID, KID and IDS")
        path = find_pretrained(INCEPTION)
        from torchmetrics.image.fid import NoTrainInceptionV3

        self._network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device).eval()

    def __call__(self, image: Image) -> Float[Tensor, "batch 2048"]:
        """Features of pictures in [-1, 1], rounded to 8 bits and resized to 299 as TensorFlow did."""
        pixels = image_to_uint8(image).permute(0, 3, 1, 2).contiguous()
        return self._network(pixels).double()


class _Given(nn.Module):
    """A stand-in for Inception where the features are there already."""

    num_features = FEATURES

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(photos: Features, completions: Features) -> float:
    """FID between completions and the photos that they complete.

    Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, eq. 6. Biased upwards for few images, the more
    the fewer: compare it on one set alone.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(), sync_on_compute=False).set_dtype(torch.float64)
    metric.update(photos, real=True)
    metric.update(completions, real=False)
    return float(metric.compute())


def kernel_distance(photos: Features, completions: Features) -> tuple[float, float, int]:
    """KID: mean and standard deviation over 100 subsets, and a subset's size: 1000 images, or half of what there are.

    Binkowski et al., Demystifying MMD GANs, 2018, eq. 3 and 4; unbiased, so that it may be below 0. At least 2 images.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, max(2, len(photos) // 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(
            feature=_Given(), subsets=KID_SUBSETS, subset_size=size, sync_on_compute=False
        ).set_dtype(torch.float64)
    metric.update(photos, real=True)
    metric.update(completions, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, deviation = metric.compute()
    return float(mean), float(deviation), size


def kernel_distance_error(photos: Features, completions: Features) -> float:
    """Standard error of KID over the photos: how much another draw of as many of their kind would move it.

    Of the U-statistic over pairs (photo, completion) with KID's kernel: Gretton et al., A Kernel Two-Sample Test, 2012,
    eq. 4 and corollary 16. Row by row in blocks, so that memory grows with the photos and time with their square.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / FEATURES + 1.0) ** 3

    count = len(photos)
    means: list[Tensor] = []
    for x, y in zip(photos.split(KID_SUBSET_SIZE), completions.split(KID_SUBSET_SIZE), strict=True):
        pairs = kernel(x, photos) + kernel(y, completions) - kernel(x, completions) - kernel(y, photos)
        own = torch.arange(len(x)), torch.arange(len(x)) + sum(map(len, means))
        means.append((pairs.sum(1) - pairs[own]) / (count - 1))
    return float(2.0 * (torch.cat(means).var() / count).sqrt())


def need_discriminative_scores() -> None:
    """Look for what P-IDS and U-IDS need.

    Raises:
        UserError: scikit-learn is not installed.
    """
    _need("sklearn", "P-IDS and U-IDS")


def discriminative_scores(
    photos: Float[Tensor, "images features"], completions: Float[Tensor, "images features"]
) -> tuple[float, float]:
    """P-IDS and U-IDS: how often a linear classifier takes completions for photos, up to 0.5 and higher is better.

    Zhao et al., Large Scale Image Completion via Co-Modulated Generative Adversarial Networks, 2021, section 4: a
    linear SVM is fitted to tell both sets apart; P-IDS is the share of photos whose own completion looks more real to
    it (eq. 2), U-IDS the share of mistakes over both sets (eq. 1). With fewer images than features it tells any two
    sets apart.
    """
    from sklearn.svm import LinearSVC

    both = torch.cat([photos, completions]).cpu().numpy()
    labels = [1] * len(photos) + [0] * len(completions)
    # The primal problem: the dual one's solver often does not converge on features of Inception.
    machine = LinearSVC(dual=False)  # pyright: ignore[reportArgumentType]: its stub knows the word "auto" alone
    scores = torch.from_numpy(machine.fit(both, labels).decision_function(both))
    real, fake = scores[: len(photos)], scores[len(photos) :]
    paired = (fake > real).double().mean()
    unpaired = ((real <= 0).double().mean() + (fake > 0).double().mean()) / 2
    return float(paired), float(unpaired)


def _need(module: str, what: str) -> None:
    if find_spec(module) is None:
        raise UserError(
            f"{what}: {module} is not installed: pip install 'inpaint-dist[eval]', or do without this metric"
        )
