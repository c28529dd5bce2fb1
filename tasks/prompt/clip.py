"""An open_clip model as the task uses it: frozen, its text tower in parts, its images normalised inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.base import Note

Tokenizer = Callable[..., Tensor]  # (texts, context_length=L) to token ids (N, L)


class Clip(nn.Module):
    """A frozen image and text encoder with one temperature.

    Args:
        model: ``open_clip.CLIP`` or ``open_clip.CustomTextCLIP``; put into ``eval()``, without gradients.
        tokenizer: texts and ``context_length=L`` to ids (N, L).
        size: side of the images in pixels.
        mean, std: of the image normalisation, three numbers each.
        name: for records. weights_id: names the weights by what they are, or how they were made but for the seed.
        features_id: tells apart what weights_id counts as one; default weights_id.
        weights: gives the state dict of ``model``, for ``load``; None where it holds its weights.
        interpolation: "bicubic" or "bilinear", for the plain view of an image.
        notes: that belong beside its numbers.
    Raises: ValueError for a text tower whose prompts cannot be injected, with the reason (see ``text_tower``).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        weights_id: str,
        features_id: str | None = None,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
        interpolation: str = "bicubic",
        notes: Sequence[Note] = (),
    ):
        super().__init__()
        text_tower(model)  # or say why not
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.size, self.interpolation, self.name = size, interpolation, name
        self.weights_id, self.features_id = weights_id, features_id or weights_id
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.bf16 = False
        self.notes = tuple(notes)
        self._weights = weights

    def load(self) -> Clip:
        """Loads the weights where that was put off, so that a grid can be planned without them; returns the model."""
        if self._weights is not None:
            self.model.load_state_dict(self._weights())
            self._weights = None
        return self

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def text_tower(self) -> nn.Module:
        return text_tower(self.model)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar that multiplies cosines."""
        return self.model.logit_scale.detach().exp().reshape(())

    def precision(self) -> AbstractContextManager[None]:
        """Autocast to bfloat16 where ``bf16`` is set, else float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Unit features (N, E), float32, of uint8 images (N, 3, size, size) on any device."""
        x = images.to(self.device).float().div_(255).sub_(self.mean).div_(self.std)
        with self.precision():
            features = self.model.encode_image(x)
        return F.normalize(features.float(), dim=-1)


def require_open_clip() -> Any:
    """The package. Raises: ModuleNotFoundError where it is not installed."""
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("CLIP needs the package open_clip: pip install dembench[prompt]") from error
    return open_clip


def text_tower(model: nn.Module) -> nn.Module:
    """The module with token_embedding, positional_embedding, transformer, ln_final and text_projection.

    That is the model itself for ``open_clip.CLIP`` and its ``text`` for ``CustomTextCLIP``.
    Raises: ValueError where a prompt cannot be cut or packed exactly: a tower of Hugging Face, one that is not causal
        or pools otherwise than at the end-of-text token, CoCa's appended token, and a model with a logit bias (SigLIP),
        whose logits are not those of a softmax.
    """
    tower = getattr(model, "text", model)
    kind = type(model).__name__
    if not hasattr(tower, "token_embedding") or not hasattr(tower, "positional_embedding"):
        raise ValueError(f"{kind}: its text tower has no token_embedding (a Hugging Face tower?); prompts need one")
    if getattr(tower, "cls_emb", None) is not None:
        raise ValueError(f"{kind}: its text tower appends a class token (CoCa); the features are not those of a prompt")
    if getattr(model, "logit_bias", None) is not None:
        raise ValueError(f"{kind}: it has a logit bias (SigLIP); its classes are no softmax over logits")
    mask = getattr(tower, "attn_mask", None)
    if mask is None or not torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1)):
        raise ValueError(f"{kind}: its text tower is not causal, so prompts cannot be cut or packed exactly")
    pooling = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    if pooling not in ("argmax", "eos"):
        raise ValueError(f"{kind}: its text tower pools by {pooling!r}; expected the end-of-text token")
    return tower
