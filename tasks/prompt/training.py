"""Training of a CLIP from nothing on images of a few classes in styles, and captions that name class and style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.base import Note
from dembench.tasks.common.cache import cache_folder, check_writable, load_state, save_state, short_hash
from dembench.tasks.prompt.captions import WordTokenizer, caption, style_templates
from dembench.tasks.prompt.clip import Clip, require_open_clip

Batch = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""(size, generator) to normalised images (size, 3, H, W) and the number of the caption of each, style first."""


@dataclass(frozen=True)
class SmallClip:
    """What is built and what it learns.

    Args:
        name: of its builder, for records. owner: the same in words, for messages.
        architecture: arguments of ``open_clip.CLIP``, but for the size of the vocabulary.
        words: names of the classes. styles: of the images. captions: templates, see ``captions.caption``.
        lr, weight_decay: of AdamW.
        interpolation: of the plain view of an image.
    """

    name: str
    owner: str
    architecture: Mapping[str, Any]
    words: Sequence[str]
    styles: Sequence[str]
    captions: Sequence[str]
    lr: float
    weight_decay: float
    interpolation: str = "bicubic"

    def tokenizer(self) -> WordTokenizer:
        """The vocabulary of all captions."""
        texts = [
            template.replace("{}", word)
            for template in style_templates(self.styles, self.captions)
            for word in self.words
        ]
        return WordTokenizer(texts, self.architecture["text_cfg"]["context_length"], self.owner)

    def build(self) -> nn.Module:
        """The untrained network. Raises: ModuleNotFoundError where open_clip is not installed."""
        text = {**self.architecture["text_cfg"], "vocab_size": self.tokenizer().vocab_size}
        return require_open_clip().CLIP(**{**self.architecture, "text_cfg": text})

    def clip(
        self,
        identity: Sequence[object],
        batches: Callable[[], Batch],
        *,
        seed: int,
        steps: int,
        batch_size: int,
        cache: str | Path | None = None,
        device: str = "cpu",
        notes: Sequence[Note] = (),
    ) -> Clip:
        """The CLIP, whose ``load`` takes the weights from the cache folder or trains them first.

        Args:
            identity: all that the weights depend on but for the seed and torch's version.
            batches: makes the batches of the training; called where it has to be.
            seed, steps, batch_size, device: see ``train``.
            cache: folder of trained weights; None is $DEMBENCH_CACHE or the user's cache folder.
            notes: that belong beside its numbers.
        """
        kind = self.kind(identity)
        path = self.path(kind, seed, cache)

        def weights() -> dict[str, Tensor]:
            state = load_state(path)
            if state is None:
                check_writable(path.parent)
                state = train(self, batches(), seed, steps, batch_size, device)
                save_state(path, state)
            return state

        with torch.random.fork_rng(devices=[]):
            model = self.build()
        half = (0.5, 0.5, 0.5)
        return Clip(
            model,
            self.tokenizer(),
            size=self.architecture["vision_cfg"]["image_size"],
            mean=half,
            std=half,
            name=self.name,
            weights_id=kind,
            features_id=f"{kind}:{seed}",
            weights=weights,
            interpolation=self.interpolation,
            notes=notes,
        )

    def kind(self, identity: Sequence[object]) -> str:
        """What the weights are but for their seed."""
        return f"{self.name}:{short_hash(*identity, torch.__version__)}"

    @staticmethod
    def path(kind: str, seed: int, cache: str | Path | None) -> Path:
        """Where trained weights are kept."""
        return cache_folder(cache) / "models" / f"{kind.replace(':', '-')}-{seed}.pt"

    def check(self, **numbers: int) -> None:
        """Raises: ValueError where the seed is no whole number >= 0, or another one none >= 1."""
        for name, value in numbers.items():
            least = 0 if name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{self.name}: expected {name} to be a whole number >= {least}, got {value!r}")


def train(spec: SmallClip, batch: Batch, seed: int, steps: int, batch_size: int, device: str) -> dict[str, Tensor]:
    """The state dict (CPU) of a network trained on images in random styles.

    Every step compares a batch of images with the captions of all classes and styles in one template; where several
    images have the same caption, all are right. AdamW, one cycle. Torch's generator and thread count are as before
    afterwards.
    Source: the loss of Radford et al., 2021 (CLIP), with several right pairs as in Khosla et al., 2020 (SupCon).
    """
    generator = torch.Generator().manual_seed(seed)
    tokenizer = spec.tokenizer()
    tokens = [
        tokenizer([caption(word, style, template) for style in spec.styles for word in spec.words]).to(device)
        for template in spec.captions
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            model = spec.build().to(device).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.lr, total_steps=steps, pct_start=0.15)
            for step in range(steps):
                x, target = batch(batch_size, generator)
                similarity = model.logit_scale.exp() * (
                    model.encode_image(x, normalize=True)
                    @ model.encode_text(tokens[step % len(tokens)], normalize=True).T
                )
                optimizer.zero_grad()
                contrast(similarity, target).backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    model.logit_scale.clamp_(max=4.6052)  # 100, as CLIP does
    finally:
        torch.set_num_threads(threads)
    return {name: value.cpu() for name, value in model.state_dict().items()}


def contrast(similarity: Tensor, target: Tensor) -> Tensor:
    """Images to captions, and captions that occur to their images, all of which are right; a scalar.

    Args:
        similarity: (images, captions). target: (images,) int64, the caption of each.
    """
    own = F.one_hot(target, similarity.shape[1]).float()
    weight = own / own.sum(0).clamp(min=1)
    to_images = -(weight * similarity.log_softmax(0)).sum() / (own.sum(0) > 0).sum()
    return (F.cross_entropy(similarity, target) + to_images) / 2
