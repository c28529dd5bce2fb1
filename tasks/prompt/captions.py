"""Captions that name a class and a style, and a tokenizer that knows no other words, for CLIPs trained here."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor


def caption(word: str, style: str, template: str) -> str:
    """The text that goes with a class in a style.

    Args:
        template: {0} is the class, {1} the style with a space behind it, or nothing where it is plain.
    """
    return template.format(word, "" if style == "plain" else f"{style} ")


def style_templates(styles: Sequence[str], captions: Sequence[str]) -> tuple[str, ...]:
    """Each caption in each style, with {} for the class, style by style."""
    return tuple(caption("{}", style, template) for style in styles for template in captions)


class WordTokenizer:
    """Whole words and punctuation marks as tokens, in the interface of open_clip's tokenizers.

    The end token has the highest number, as the pooling of the text tower wants it; 0 fills up.

    Args:
        texts: those with the words that it knows. context_length: of the ids, start and end included.
        owner: whose tokenizer it is, for messages.
    """

    def __init__(self, texts: Sequence[str], context_length: int = 12, owner: str = "the tokenizer"):
        words = sorted({word for text in texts for word in self.split(text)})
        self.numbers = {word: number for number, word in enumerate(words, start=1)}
        self.context_length, self.owner = context_length, owner
        self.sot_token_id, self.eot_token_id = len(words) + 1, len(words) + 2
        self.vocab_size = len(words) + 3

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    def encode(self, text: str) -> list[int]:
        """Raises: ValueError for a word that is not in the vocabulary."""
        words = self.split(text)
        if unknown := [word for word in words if word not in self.numbers]:
            raise ValueError(f"{self.owner} does not know the word {unknown[0]!r}; it knows {', '.join(self.numbers)}")
        return [self.numbers[word] for word in words]

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Ids (N, context_length); what is too long loses its last words."""
        length = context_length or self.context_length
        ids = torch.zeros(1 if isinstance(texts, str) else len(texts), length, dtype=torch.long)
        for row, text in zip(ids, [texts] if isinstance(texts, str) else texts, strict=True):
            tokens = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids
