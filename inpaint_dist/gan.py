"""The inpainting GAN: the game's rules, and nothing else. No optimiser, no precision, no rank."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from inpaint_dist.batch import Batch, Completion, Drafted, Image, Judgement, Luck, Mask, composite, masked
from inpaint_dist.losses.adversarial import AdversarialLoss, accuracy, feature_distance, r1_penalty
from inpaint_dist.losses.augmentation import augment_image, augment_mask
from inpaint_dist.losses.objective import ObjectiveConfig
from inpaint_dist.losses.perceptual import cut_windows, perceptual_distance, style_distance, window_corners, window_size
from inpaint_dist.losses.reconstruction import reconstruction_distance
from inpaint_dist.losses.spectrum import focal_frequency_distance, total_variation

Generator: TypeAlias = Callable[[Image, Mask], Image | Drafted]
Discriminator: TypeAlias = Callable[[Image, Mask], Judgement]
Features: TypeAlias = Callable[[Image], list[Tensor]]


@dataclass(frozen=True)
class DiscriminatorLosses:
    """D's loss, and what tells how well it does."""

    total: Tensor
    """What D is stepped by, R1 included where it was asked for."""
    adversarial: Tensor
    """The GAN loss alone, detached."""
    real: Tensor
    """Mean score of photos, detached."""
    fake: Tensor
    """Mean score of completions, detached."""
    accuracy_real: Tensor
    """Share of photos' patches that D calls real, 0..1."""
    accuracy_fake: Tensor
    """Share of completions' patches that D calls fake, of those it is asked to, 0..1."""
    r1: Tensor | None
    """The penalty at photos, unweighted and detached, where it was asked for."""


@dataclass(frozen=True)
class GeneratorLosses:
    """G's loss and its terms."""

    total: Tensor
    terms: dict[str, Tensor]
    """Unweighted, attached."""
    weighted: dict[str, Tensor]
    """Weighted, attached; they sum to `total`."""


class InpaintingGAN:
    """Generator against discriminator over the holes of photos."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        objective: ObjectiveConfig,
        *,
        judge: Discriminator | None = None,
        features: Features | None = None,
        one_pass: bool = True,
    ) -> None:
        """Put the game together.

        Args:
            generator: (masked, mask) → prediction, or with the drafts before it.
            discriminator: (image, mask) → scores and features, as it is trained.
            objective: what both are asked for.
            judge: the same discriminator as the generator's step calls it, where that differs (under DDP the module
                itself, so that its gradients are not reduced a second time).
            features: the network of the perceptual and style terms, where the objective has them.
            one_pass: score photos and completions in one forward; right only without batch statistics in D.
        """
        self.generator = generator
        self.discriminator = discriminator
        self.judge = judge or discriminator
        self.objective = objective
        self.adversarial: AdversarialLoss = objective.adversarial.build()
        self.features = features
        self.one_pass = one_pass

    def complete(self, batch: Batch) -> Completion:
        """Fill the holes. The generator never sees what they hide."""
        made = self.generator(masked(batch.image, batch.mask), batch.mask)
        prediction, drafts = made if isinstance(made, Drafted) else (made, ())
        return Completion(prediction, composite(prediction, batch.image, batch.mask), drafts)

    def discriminator_loss(
        self, batch: Batch, completion: Completion, *, penalise: bool = False
    ) -> DiscriminatorLosses:
        """D's loss on photos and on completions, with `penalise` R1 too; nothing flows back to the generator."""
        fake_image = self.shown(completion).detach().to(batch.image.dtype)
        real_image, fake_image, mask = self._augmented(batch, fake_image)
        if self.one_pass:
            both = self.discriminator(torch.cat([real_image, fake_image]), torch.cat([mask, mask]))
            real, fake = both.scores.chunk(2)
        else:
            real, fake = (self.discriminator(image, mask).scores for image in (real_image, fake_image))
        adversarial = self.adversarial.discriminator(real, fake, mask)
        total, r1 = adversarial, None
        if penalise:
            r1 = r1_penalty(lambda image: self.judge(image, mask), real_image)
            total = total + self.objective.r1_weight * self.objective.r1_every * r1
        accuracy_real, accuracy_fake = accuracy(self.adversarial, real, fake, mask)
        return DiscriminatorLosses(
            total,
            adversarial=adversarial.detach(),
            real=real.detach().to(adversarial.dtype).mean(),
            fake=fake.detach().to(adversarial.dtype).mean(),
            accuracy_real=accuracy_real,
            accuracy_fake=accuracy_fake,
            r1=r1 if r1 is None else r1.detach(),
        )

    def generator_loss(self, batch: Batch, completion: Completion) -> GeneratorLosses:
        """G's loss: near the photo inside the hole, and a photo to D. D must be frozen by whoever steps."""
        shown = self.shown(completion)
        real_image, fake_image, mask = self._augmented(batch, shown)
        fake = self.judge(fake_image, mask)
        made = (completion.prediction, *completion.drafts)
        distances = [reconstruction_distance(x, batch.image, batch.mask, self.objective.reconstruction) for x in made]
        terms = {
            "reconstruction": torch.stack(distances).sum(),
            "adversarial": self.adversarial.generator(fake.scores, mask),
        }
        if self.objective.feature_matching_weight:
            with torch.no_grad():
                real = self.judge(real_image, mask)
            terms["feature_matching"] = feature_distance(fake, real)
        if self.objective.focal_frequency_weight:
            terms["focal_frequency"] = focal_frequency_distance(shown, batch.image)
        if self.objective.total_variation_weight:
            terms["total_variation"] = total_variation(completion.composite, batch.mask)
        if self.features is not None:
            terms |= self._feature_terms(self.features, shown, batch)
        weighted = self.objective.weigh(terms)
        return GeneratorLosses(torch.stack(list(weighted.values())).sum(), terms, weighted)

    def _augmented(self, batch: Batch, fake: Image) -> tuple[Image, Image, Mask]:
        """Photos, completions and masks as D sees them: changed alike, where the objective asks for it."""
        if not (changes := self.objective.augment):
            return batch.image, fake, batch.mask
        luck = _luck(batch)
        real, fake = (augment_image(image, luck, changes) for image in (batch.image, fake))
        return real, fake, augment_mask(batch.mask, luck, changes)

    def _feature_terms(self, features: Features, shown: Image, batch: Batch) -> dict[str, Tensor]:
        image = batch.image
        if (share := self.objective.perceptual.window) < 1:
            size = window_size(image.shape[2], image.shape[3], share)
            corners = window_corners(batch.mask, _luck(batch)[:, -1], size)
            shown, image = (cut_windows(picture, corners, size) for picture in (shown, image))
        with torch.no_grad():
            theirs = features(image)
        mine = features(shown)
        terms: dict[str, Tensor] = {}
        if self.objective.perceptual_weight:
            terms["perceptual"] = perceptual_distance(mine, theirs)
        if self.objective.style_weight:
            terms["style"] = style_distance(mine, theirs)
        return terms

    def shown(self, completion: Completion) -> Image:
        """What the discriminator sees of a completion."""
        return completion.prediction if self.objective.discriminator_sees == "prediction" else completion.composite


def _luck(batch: Batch) -> Luck:
    if batch.luck is None:
        raise ValueError("this objective chooses at random: the batch needs its luck")
    return batch.luck
