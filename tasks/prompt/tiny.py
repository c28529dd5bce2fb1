"""A CLIP small enough to be trained here: digits in nine styles against captions that name digit and style."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.cache import cache_folder, short_hash, write_atomically
from tasks.prompt.clip import Clip
from tasks.prompt.digits import (
    CAPTIONS,
    RENDERING,
    SIZE,
    STYLES,
    WORDS,
    affine,
    as_rgb,
    caption,
    digits,
    style_templates,
    stylise,
)

POSITIONS = 12
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE, "layers": (1, 1, 1, 1), "width": 16, "head_width": 32},  # a small ResNet
    "text_cfg": {"context_length": POSITIONS, "width": 64, "heads": 4, "layers": 3},
}
RECIPE = {"version": 1, "lr": 1e-3, "weight_decay": 0.05, "turn": 12, "zoom": 0.12, "shift": 0.1}


class WordTokenizer:
    """Whole words and punctuation marks as tokens, in the interface of open_clip's tokenizers.

    The end token has the highest number, as the pooling of the text tower wants it; 0 fills up.
    """

    def __init__(self, texts: Sequence[str], context_length: int = POSITIONS):
        words = sorted({word for text in texts for word in self.split(text)})
        self.numbers = {word: number for number, word in enumerate(words, start=1)}
        self.context_length = context_length
        self.sot_token_id, self.eot_token_id = len(words) + 1, len(words) + 2
        self.vocab_size = len(words) + 3

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    def encode(self, text: str) -> list[int]:
        """Raises: ValueError for a word that is not in the vocabulary."""
        words = self.split(text)
        if unknown := [word for word in words if word not in self.numbers]:
            raise ValueError(
                f"the digits CLIP does not know the word {unknown[0]!r}; it knows {', '.join(self.numbers)}"
            )
        return [self.numbers[word] for word in words]

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Ids (N, context_length); what is too long loses its last words."""
        length = context_length or self.context_length
        ids = torch.zeros(1 if isinstance(texts, str) else len(texts), length, dtype=torch.long)
        for row, text in zip(ids, [texts] if isinstance(texts, str) else texts, strict=True):
            tokens = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids


def tokenizer() -> WordTokenizer:
    """The vocabulary of all captions."""
    return WordTokenizer([template.replace("{}", word) for template in style_templates() for word in WORDS])


def digits_clip(seed: int = 0, steps: int = 400, batch_size: int = 128, cache: str | Path | None = None) -> Clip:
    """A CLIP of 1.5 million parameters. ``load`` takes it from the cache folder, or trains it first (about a minute).

    Args:
        seed: of initialisation and training. steps, batch_size: of its training.
        cache: folder of trained weights; None is $DEMBENCH_CACHE or the user's cache folder.
    The same seed, torch version and kind of processor give the same weights bit for bit.
    Raises: ValueError for a wrong number.
    """
    for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"digits_clip: expected {name} to be a whole number >= {least}, got {value!r}")
    recipe = {**RECIPE, "steps": steps, "batch_size": batch_size}
    kind = f"digits_clip:{short_hash(RENDERING, ARCHITECTURE, recipe, CAPTIONS, STYLES, torch.__version__)}"
    path = cache_folder(cache) / "models" / f"{kind.replace(':', '-')}-{seed}.pt"

    def weights() -> dict[str, Tensor]:
        state = _read(path)
        if state is None:
            state = train(seed, steps, batch_size)
            write_atomically(path, lambda file: torch.save(state, file))
        return state

    with torch.random.fork_rng(devices=[]):
        model = build()
    half = (0.5, 0.5, 0.5)
    return Clip(
        model,
        tokenizer(),
        size=SIZE,
        mean=half,
        std=half,
        name="digits_clip",
        weights_id=kind,
        features_id=f"{kind}:{seed}",
        weights=weights,
    )


def build() -> nn.Module:
    """The untrained network. Raises: ModuleNotFoundError where open_clip is not installed."""
    open_clip = require_open_clip()
    text = {**ARCHITECTURE["text_cfg"], "vocab_size": tokenizer().vocab_size}
    return open_clip.CLIP(**{**ARCHITECTURE, "text_cfg": text})


def require_open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("CLIP needs the package open_clip: pip install dembench[prompt]") from error
    return open_clip


def _read(path: Path) -> dict[str, Any] | None:
    """A cached state dict; None where there is none or it cannot be read, then it is made again."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, pickle.UnpicklingError, RuntimeError, EOFError):
        return None


def train(seed: int, steps: int, batch_size: int) -> dict[str, Tensor]:
    """Trains on the train digits in random styles, slightly turned, scaled and moved; returns the state dict (CPU).

    Every step compares a batch of images with all 90 captions of one template; where several images have the same
    caption, all are right. AdamW, one cycle. Torch's generator and thread count are as before afterwards.
    """
    images, labels = digits("train")
    generator = torch.Generator().manual_seed(seed)
    tokens = {
        template: tokenizer()([caption(word, style, template) for style in STYLES for word in WORDS])
        for template in CAPTIONS
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            model = build().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["lr"], weight_decay=RECIPE["weight_decay"])
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["lr"], total_steps=steps, pct_start=0.15)
            for step in range(steps):
                x, target = _batch(images, labels, batch_size, generator)
                similarity = model.logit_scale.exp() * (
                    model.encode_image(x, normalize=True)
                    @ model.encode_text(tokens[CAPTIONS[step % len(CAPTIONS)]], normalize=True).T
                )
                optimizer.zero_grad()
                _contrast(similarity, target).backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    model.logit_scale.clamp_(max=4.6052)  # 100, as CLIP does
    finally:
        torch.set_num_threads(threads)
    return model.state_dict()


def _batch(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normalised images (size, 3, 32, 32) and the number of the caption of each, style first."""
    chosen = torch.randint(len(images), (size,), generator=generator)
    style = torch.randint(len(STYLES), (size,), generator=generator)
    draw = 2 * torch.rand(size, 4, generator=generator) - 1
    angle = torch.deg2rad(RECIPE["turn"] * draw[:, 0])
    x = affine(images[chosen], angle, 1 + RECIPE["zoom"] * draw[:, 1], RECIPE["shift"] * draw[:, 2:])
    for number, name in enumerate(STYLES):
        x[style == number] = stylise(x[style == number], name, generator)
    return as_rgb(x).float().div_(127.5).sub_(1), style * len(WORDS) + labels[chosen]


def _contrast(similarity: Tensor, target: Tensor) -> Tensor:
    """Images to captions, and captions that occur to their images, all of which are right."""
    own = F.one_hot(target, similarity.shape[1]).float()
    weight = own / own.sum(0).clamp(min=1)
    to_images = -(weight * similarity.log_softmax(0)).sum() / (own.sum(0) > 0).sum()
    return (F.cross_entropy(similarity, target) + to_images) / 2
