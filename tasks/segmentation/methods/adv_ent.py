"""AdvEnt: align the entropy maps of both domains by a discriminator (Vu et al., ADVENT, 2019, eq. 4-7).

The paper's method has no loss on target pixels beside; here a loss can be added. What the discriminators see stays the
weighted self-information of plain softmax probabilities, whatever the loss is.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.segmentation.methods.base import Data, EntropyTerm, Logits, UDAMethod, Values, pixel_entropy

SOURCE, TARGET = 0.0, 1.0  # labels of the domains


class AdvEnt(UDAMethod):
    """The network makes target maps that the discriminators take for source maps; they learn to tell them apart.

    Args:
        loss: added on target pixels; None is the published method.
        adversarial, adversarial_aux: weights of the network's adversarial term, one for each head.
        discriminator_lr: of both discriminators, by Adam (0.9, 0.99).
        discriminator_width: channels of their first layer, 64 as published.
        weight, aux_weight, unit, resolution, ramp: of the loss, see ``EntropyTerm``.
    Raises: ValueError for negative weights.
    """

    name = "adv_ent"
    repeated_in = ("ADVENT", "advent_original")

    def __init__(
        self,
        loss: Any = None,
        *,
        adversarial: float = 0.001,
        adversarial_aux: float = 0.0002,
        discriminator_lr: float = 1e-4,
        discriminator_width: int = 64,
        weight: float = 0.001,
        aux_weight: float = 0.0002,
        unit: Literal["log_c", "bits", "nats"] = "log_c",
        resolution: Literal["full", "logit"] = "full",
        ramp: float = 0.0,
        **settings: Any,
    ):
        super().__init__(term=EntropyTerm(loss, weight, aux_weight, unit, resolution, ramp), **settings)
        if min(adversarial, adversarial_aux) < 0 or discriminator_lr <= 0 or discriminator_width < 1:
            raise ValueError(
                "adv_ent: expected weights >= 0, discriminator_lr > 0 and discriminator_width >= 1, got "
                f"{adversarial}, {adversarial_aux}, {discriminator_lr} and {discriminator_width}"
            )
        self.adversarial = {"main": adversarial, "aux": adversarial_aux}
        self.discriminator_lr = discriminator_lr
        self.d_main = Discriminator(self.num_classes, discriminator_width)
        self.d_aux = Discriminator(self.num_classes, discriminator_width) if self.network.has_aux else None

    def discriminators(self) -> dict[str, tuple[nn.Module, float]]:
        found = {"d_main": self.d_main} | ({} if self.d_aux is None else {"d_aux": self.d_aux})
        return {name: (module, self.discriminator_lr) for name, module in found.items()}

    def gradients(self, data: Data) -> Values:
        # the network, by the gradients of the source term and of the target terms
        term, source = self.source_term(data["source"])
        values = {"source": self.backward(term)}
        target = self.target_logits(data["target"])
        target_maps = self.maps(target)
        fooling = self.fooling_term(target_maps)
        values["adversarial_term"] = fooling.detach()
        if self.term.active:
            added = self.term(target, data["progress"])
            values["entropy_term"] = added.detach()
            fooling = fooling + added
        values["entropy"] = pixel_entropy(target.main)
        self.backward(fooling)

        # the discriminators, which see both maps as constants
        source_maps = self.maps(source)
        for name, discriminator in self.pairs():
            for maps, label in ((source_maps, SOURCE), (target_maps, TARGET)):
                half = domain_term(discriminator(maps[name].detach()), label) / 2
                half.backward()
                values[f"d_{name}"] = values.get(f"d_{name}", 0) + half.detach()
        return values

    def pairs(self) -> list[tuple[str, nn.Module]]:
        """Each head's name and discriminator."""
        return [("main", self.d_main)] + ([] if self.d_aux is None else [("aux", self.d_aux)])

    def maps(self, logits: Logits) -> dict[str, Tensor]:
        """Self-information maps of each head at the images' size, zero where an image was padded."""
        inside = 1.0 if logits.mask is None else logits.mask[:, None]
        return {name: self_information(logits.full(z)) * inside for name, z in logits.heads().items()}

    def fooling_term(self, maps: dict[str, Tensor]) -> Tensor:
        """Low where the discriminators take the target maps for source maps; they get no gradient."""
        terms = []
        for name, discriminator in self.pairs():
            discriminator.requires_grad_(False)
            terms.append(self.adversarial[name] * domain_term(discriminator(maps[name]), SOURCE))
            discriminator.requires_grad_(True)
        return torch.stack(terms).sum()


class Discriminator(nn.Sequential):
    """Maps (N, C, H, W) to a map of domain logits: five 4x4 convolutions of stride 2, leaky ReLU 0.2 between.

    Source: ADVENT; Radford et al., DCGAN, 2016, without normalisation.
    """

    def __init__(self, num_classes: int, width: int = 64):
        channels = (num_classes, width, 2 * width, 4 * width, 8 * width, 1)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            layers += [] if i == 0 else [nn.LeakyReLU(0.2, inplace=True)]
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
        super().__init__(*layers)


def self_information(logits: Tensor) -> Tensor:
    """Weighted self-information -p_c log p_c / log C of each class and pixel, (N, C, H, W); their sum is the entropy.

    Source: ADVENT, below eq. 4.
    """
    log_p = logits.log_softmax(1)
    return -log_p.exp() * log_p / math.log(logits.shape[1])


def domain_term(logits: Tensor, label: float) -> Tensor:
    """Binary cross entropy of domain logits against one label, mean over the map."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
