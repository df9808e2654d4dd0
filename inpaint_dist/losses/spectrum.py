"""What a filled picture is asked beside being near the photo: its spectrum, and smooth seams."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from inpaint_dist.batch import Image, Mask


def focal_frequency_distance(result: Image, image: Image) -> Float[Tensor, ""]:
    """Squared distance of the spectra of two pictures, the worst frequencies weighing most.

    Jiang et al., Focal Frequency Loss for Image Reconstruction and Synthesis, 2021, eq. 8 to 10 with alpha 1: each
    frequency is weighted by its own distance over the largest of its channel. Mean over images, channels and
    frequencies of an orthonormal transform. The transform runs in float32 or wider, whatever the autocast.
    """
    with torch.autocast(result.device.type, enabled=False):
        wide = torch.promote_types(image.dtype, torch.float32)
        spectrum = torch.fft.fft2(result.to(wide) - image.to(wide), norm="ortho")
        squared = spectrum.real.square() + spectrum.imag.square()
        weight = squared.detach().sqrt()
        weight = weight / weight.amax((2, 3), keepdim=True).clamp_min(1e-12)
        return (weight * squared).mean()


def total_variation(result: Image, mask: Mask) -> Float[Tensor, ""]:
    """Mean absolute difference of neighbours in the hole and one pixel around it, over the numbers of the picture.

    Liu et al., Image Inpainting for Irregular Holes Using Partial Convolutions, 2018, eq. 6: its seam, and its noise.
    """
    wide = torch.promote_types(result.dtype, torch.float32)
    here = F.max_pool2d(mask.to(wide), 3, stride=1, padding=1)
    picture = result.to(wide)
    down = (picture[:, :, 1:] - picture[:, :, :-1]).abs() * here[:, :, 1:] * here[:, :, :-1]
    right = (picture[..., 1:] - picture[..., :-1]).abs() * here[..., 1:] * here[..., :-1]
    return ((down.sum((1, 2, 3)) + right.sum((1, 2, 3))) / picture[0].numel()).mean()
