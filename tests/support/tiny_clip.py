"""Small random CLIPs of both classes of open_clip, and their prompts as the library itself encodes them."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.prompt.clip import Clip

NAMES = ("cat", "polar bear", "dog", "red kite", "extraordinarily long-winded animal", "ox")
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 3}
KINDS = {"CLIP": open_clip.CLIP, "CustomTextCLIP": open_clip.CustomTextCLIP}


def tiny_clip(kind: str = "CLIP", dtype: torch.dtype = torch.float32, seed: int = 0, **text: object) -> Clip:
    """Random weights, scaled up so that logits differ; the library's own tokenizer."""
    torch.manual_seed(seed)
    model = KINDS[kind](embed_dim=24, vision_cfg=dict(VISION), text_cfg={**TEXT, **text}).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "resblocks" in name and parameter.dim() == 2:
                parameter.mul_(3)
    tokenizer = open_clip.SimpleTokenizer(context_length=int(TEXT["context_length"]))
    half = (0.5, 0.5, 0.5)
    return Clip(model, tokenizer, size=32, mean=half, std=half, name="tiny", weights_id=f"tiny-{kind}-{seed}")


def by_hook(clip: Clip, template: str, context: Tensor, names: tuple[str, ...] = NAMES) -> Tensor:
    """``encode_text`` of the library, (C, E), unit; a hook on the token embedding puts (n, D) behind the start token.

    For a context of another length than the template's words, give a template with that many one-token words.
    """

    def replace(_: nn.Module, __: object, out: Tensor) -> Tensor:
        rows = context.to(out.dtype).expand(len(out), -1, -1)
        return torch.cat([out[:, :1], rows, out[:, 1 + len(context) :]], 1)

    embedding = getattr(clip.model, "text", clip.model).token_embedding
    handle = embedding.register_forward_hook(replace)
    try:
        ids = clip.tokenizer([template.replace("{}", name) for name in names])
        return F.normalize(clip.model.encode_text(ids), dim=-1)
    finally:
        handle.remove()
