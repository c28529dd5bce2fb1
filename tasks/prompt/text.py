"""Class prompts whose context is a tensor, through the parts of an open_clip text tower.

A prompt is <start> context name rest <end> and then nothing. In a causal tower <end> sees nothing behind it, so the
empty positions need not be computed; and <start> and the context have the same states for all classes in every layer,
so they need to be computed once: the classes' own tokens are put behind them one after the other, each at its own
position, and see the context and their own class only. Both are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.tasks.prompt.clip import Clip

Encoding = Literal["packed", "truncated", "full"]
ENCODINGS = ("packed", "truncated", "full")


@dataclass(frozen=True)
class Pack:
    """Some classes behind one prefix: ``tokens`` (T,), their ``places`` behind the prefix (T,), the attention ``mask``
    (1 + n + T, 1 + n + T) for a context of n, ``ends`` (G,) among the T tokens, and ``classes`` (G,)."""

    tokens: Tensor
    places: Tensor
    mask: Tensor
    ends: Tensor
    classes: Tensor


class Prompts:
    """The classes of a data set as prompts with an open context.

    Args:
        clip: gives tokenizer and text tower.
        names: of the C classes.
        template: such as "a photo of a {}."; the words before {} are the context, what follows stays.
        templates: for the ensemble; default the template alone.
        encoding: "packed", "truncated" (to the longest prompt) or "full" (all positions); the same result.
        group: classes that share a prefix when packed; the attention is quadratic in their tokens.
    Raises: ValueError for a template without {}, no classes, or prompts longer than the tower's positions.
    """

    def __init__(
        self,
        clip: Clip,
        names: Sequence[str],
        template: str,
        templates: Sequence[str] = (),
        encoding: Encoding = "packed",
        group: int = 64,
    ):
        if encoding not in ENCODINGS:
            raise ValueError(f"unknown encoding {encoding!r}; valid: {', '.join(ENCODINGS)}")
        if template.count("{}") != 1:
            raise ValueError(f"expected a template with one {{}}, such as 'a photo of a {{}}.', got {template!r}")
        if not names:
            raise ValueError("expected one or more class names")
        self.clip, self.names, self.template, self.encoding, self.group = clip, tuple(names), template, encoding, group
        self.templates = tuple(templates) or (template,)
        self._tower: nn.Module = clip.text_tower
        self._context_ids, self._class_ids = self._tokens()
        self._lengths = torch.tensor([len(ids) for ids in self._class_ids])
        self._ends = self._lengths.to(clip.device)
        self._packs: dict[int, list[Pack]] = {}

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def positions(self) -> int:
        """Tokens that the tower takes."""
        return len(self._tower.positional_embedding)

    def with_template(self, template: str) -> Prompts:
        """The same classes under another template."""
        return Prompts(self.clip, self.names, template, self.templates, self.encoding, self.group)

    def words(self) -> Tensor:
        """The embeddings of the template's words before the name, (n, D); n counts tokens, not words."""
        return self._embed(self._context_ids).clone()

    def __call__(self, context: Tensor) -> Tensor:
        """Unit text features, at least float32: (C, E) for a context (n, D), (B, C, E) for B contexts (B, n, D).

        Any n that leaves room for the longest class will do. Raises: ValueError for another.
        """
        if context.dim() not in (2, 3) or context.shape[-1] != self._tower.positional_embedding.shape[1]:
            width = self._tower.positional_embedding.shape[1]
            raise ValueError(f"expected a context (n, {width}) or (B, n, {width}), got {tuple(context.shape)}")
        needed = 1 + context.shape[-2] + int(self._lengths.max())
        if needed > self.positions:
            raise ValueError(f"the longest prompt has {needed} tokens, the text tower takes {self.positions}")
        batch = context if context.dim() == 3 else context[None]
        with self.clip.precision():
            if self.encoding == "packed":
                features = self._packed(batch)
            else:
                features = self._padded(batch, self.positions if self.encoding == "full" else needed)
        features = F.normalize(_wide(features), dim=-1)
        return features if context.dim() == 3 else features[0]

    def _tokens(self) -> tuple[Tensor, list[Tensor]]:
        """Ids of the context, and of each class what follows it, up to and with the end-of-text token."""
        before = self.template.partition("{}")[0].strip()
        texts = [before, *(self.template.replace("{}", name.replace("_", " ")) for name in self.names)]
        ids = self.clip.tokenizer(texts, context_length=self.positions + 1)  # one more, so that a cut can be seen
        pooling = getattr(self._tower, "text_pool_type", None) or getattr(self._tower, "pool_type", None)
        if pooling == "eos":
            eos = getattr(self._tower, "text_eos_id", None) or getattr(self._tower, "eos_id", None)
            ends = (ids == eos).int().argmax(1)
        else:
            ends = ids.argmax(1)
        if int(ends.max()) >= self.positions:
            text = texts[int(ends.argmax())]
            raise ValueError(f"the prompt {text!r} has more than the {self.positions} tokens that the text tower takes")
        n = int(ends[0]) - 1
        context = ids[0, 1 : 1 + n]
        for row, text in zip(ids[1:], texts[1:], strict=True):
            if not torch.equal(row[: 1 + n], ids[0, : 1 + n]):
                raise ValueError(f"the prompt {text!r} does not begin with the tokens of {before!r}")
        self._start_id = ids[:1, 0].to(self.clip.device)
        device = self.clip.device
        classes = [row[1 + n : int(end) + 1].to(device) for row, end in zip(ids[1:], ends[1:], strict=True)]
        return context.to(device), classes

    def _embed(self, ids: Tensor) -> Tensor:
        """At least float32."""
        with torch.no_grad():
            return _wide(self._tower.token_embedding(ids))

    def _project(self, x: Tensor) -> Tensor:
        """The hidden states at the end-of-text tokens (..., D) to features (..., E)."""
        x = self._tower.ln_final(x)
        projection = self._tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def _inputs(self, embeddings: Tensor, places: Tensor) -> Tensor:
        dtype = self._tower.transformer.get_cast_dtype()
        return embeddings.to(dtype) + self._tower.positional_embedding[places].to(dtype)

    def _padded(self, context: Tensor, length: int) -> Tensor:
        """One sequence of ``length`` tokens for every class and context."""
        b, n, width = context.shape
        ids = torch.zeros(self.num_classes, length - 1 - n, dtype=torch.long, device=context.device)
        for row, own in zip(ids, self._class_ids, strict=True):
            row[: len(own)] = own
        own_tokens = self._embed(ids).expand(b, -1, -1, -1)
        start = self._embed(self._start_id).expand(b, self.num_classes, 1, -1)
        context = context[:, None].expand(-1, self.num_classes, -1, -1)
        x = torch.cat([start, context, own_tokens], 2).flatten(0, 1)
        x = self._inputs(x, torch.arange(length, device=x.device))
        x = self._tower.transformer(x, attn_mask=self._tower.attn_mask[:length, :length])
        classes = torch.arange(self.num_classes, device=x.device)
        x = x.view(b, self.num_classes, length, width)[:, classes, n + self._ends]
        return self._project(x)

    def _packed(self, context: Tensor) -> Tensor:
        """One sequence a group of classes for every context."""
        b, n, _ = context.shape
        if n not in self._packs:
            self._packs[n] = self._pack(n)
        start = self._embed(self._start_id).expand(b, 1, -1)
        features, classes = [], []
        for pack in self._packs[n]:
            own = self._embed(pack.tokens).expand(b, -1, -1)
            places = torch.cat([torch.arange(1 + n, device=context.device), pack.places])
            x = self._inputs(torch.cat([start, context, own], 1), places)
            x = self._tower.transformer(x, attn_mask=pack.mask)
            features.append(self._project(x[:, 1 + n + pack.ends]))
            classes.append(pack.classes)
        order = torch.cat(classes).argsort()
        return torch.cat(features, 1)[:, order]

    def _pack(self, n: int) -> list[Pack]:
        """Groups of classes of similar length."""
        device = self.clip.device
        packs = []
        for classes in self._lengths.argsort(stable=True).split(self.group):
            lengths = self._lengths[classes]
            owner = torch.arange(len(classes)).repeat_interleave(lengths)
            starts = lengths.cumsum(0) - lengths
            places = torch.arange(len(owner)) - starts[owner]
            owner = torch.cat([torch.full((1 + n,), -1), owner])
            seen = (owner[:, None] == owner) | (owner == -1)  # its own class, and the prefix
            seen &= torch.ones_like(seen).tril()
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            tokens = torch.cat([self._class_ids[int(k)] for k in classes])
            parts = (tokens, 1 + n + places, mask, lengths.cumsum(0) - 1, classes)
            packs.append(Pack(*(part.to(device) for part in parts)))
        return packs


def _wide(x: Tensor) -> Tensor:
    """float32 of half precision; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
