"""MEMO (Zhang et al. 2022): each image alone; the marginal prediction of its augmented copies is made certain.

As the authors' code (zhangmarvin/memo): AugMix behind a random crop and flip, one step on all parameters, then the
image is predicted, and the next starts from the source model. BatchNorms mix in the statistics of the copies.
"""

from typing import Literal, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from dembench.core.adapt import Loss, batch_norms
from dembench.lookup import lookup
from dembench.tasks.common.augmix import augmix
from dembench.tasks.tta.methods.base import Common, EntropyMethod, Optimizer
from dembench.tasks.tta.methods.norm import mix_statistics
from dembench.tasks.tta.methods.views import drawing_from

SMALL = 64  # pixels, up to which an image is padded and cropped


class MEMO(EntropyMethod):
    """For each image: a step that lowers the loss of log mean_v p(x_v), then its logits.

    ``loss`` replaces the entropy of the marginal; it is given one row (1, C), so a loss that needs a batch, AdaDEM's
    normalisation over it included, sees one sample. Views are made on the host.

    Args:
        views: augmented copies of each image.
        prior: N; the weight of the source's BatchNorm statistics is N / (N + 1), that of the copies' 1 / (N + 1).
        crop: "pad" by an eighth and crop, "resized" for photographs; None is pad up to 64 pixels, resized above.
        optimizer, lr: the authors have plain SGD; 5e-3, 32 views for CIFAR; 2.5e-4, 64 for ImageNet with ResNet-50.
    The other arguments and errors are those of ``EntropyMethod``; it is episodic in any case. Raises: ValueError for
    views < 1, prior < 0 or another crop.
    """

    needs_images = stops_gradient = True

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        views: int = 32,
        prior: float = 16,
        crop: Literal["pad", "resized"] | None = None,
        optimizer: Optimizer = "sgd",
        lr: float = 5e-3,
        **common: Unpack[Common],
    ):
        if crop is not None:
            lookup(crop, ("pad", "resized"), "memo crop")
        if views < 1 or prior < 0:
            raise ValueError(f"memo: expected views >= 1 and prior >= 0, got {views} and {prior}")
        self.views, self.prior, self.crop = views, prior, crop
        super().__init__(model, loss, optimizer=optimizer, lr=lr, **common)

    def prepare(self) -> None:
        self.model.eval()
        mix_statistics(batch_norms(self.model), 1 / (self.prior + 1))

    def choose(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @torch.enable_grad()
    def predict(self, x: Tensor) -> Tensor:
        self._due = 1
        logits = []
        for image in x.split(1):
            self.learner.reset()
            self._batches = 0
            for _ in range(self.steps):
                self.adapt(image)
            logits.append(super(EntropyMethod, self).predict(image))
        self.updated = self.updated + len(x)
        return torch.cat(logits)

    def adapt(self, x: Tensor) -> Tensor:
        logits = self.forward(self.augmented(x))
        marginal = logits.log_softmax(1).logsumexp(0, keepdim=True) - torch.tensor(float(len(logits))).log().item()
        self.descend(self.loss(marginal).mean(), 1)
        return logits

    @torch.no_grad()
    def peek(self, x: Tensor) -> Tensor:
        return torch.cat([self.forward(image) for image in x.split(1)])

    def augmented(self, x: Tensor) -> Tensor:
        """Views (V, 3, H, W) of an image (1, 3, H, W)."""
        image, size = to_pil_image(x[0].float().cpu()), list(x.shape[2:])
        pad = self.crop == "pad" or (self.crop is None and max(size) <= SMALL)
        crop = v2.RandomCrop(size, padding=max(size) // 8) if pad else v2.RandomResizedCrop(size)
        change = v2.Compose([crop, v2.RandomHorizontalFlip()])
        with drawing_from(self.generator):
            views = [torch.from_numpy(augmix(self._drawn(change, image), fill=128)) for _ in range(self.views)]
        return (torch.stack(views).permute(0, 3, 1, 2) / 255).to(x).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _drawn(change: v2.Compose, image: Image.Image) -> Image.Image:
        changed: Image.Image = change(image)
        return changed
