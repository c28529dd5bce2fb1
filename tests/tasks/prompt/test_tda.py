"""TDA against its rules in plain Python, image by image, and what a stream asks of the task."""

import math
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from tiny_clip import NAMES, tiny_clip
from torch.nn import functional as F
from torch.testing import assert_close

from dembench import core
from dembench.tasks.base import Point, Row
from dembench.tasks.common.parts import DataPart
from dembench.tasks.prompt.data import Digits
from dembench.tasks.prompt.methods.tda import TDA
from dembench.tasks.prompt.methods.tpt import TPT
from dembench.tasks.prompt.methods.zero_shot import ZeroShot
from dembench.tasks.prompt.task import PromptTuning, Protocol
from dembench.tasks.prompt.text import Prompts
from dembench.tasks.prompt.views import Views

TEMPLATES = ("a photo of a {}.", "a drawing of the {}.")
WIDTH = 24


def stream(prompts, images, views, seed=0):
    """Features (N, V, E), float64: each image near the text of a class, or between those of two."""
    draw = torch.Generator().manual_seed(seed)
    text = prompts(prompts.words())
    pair = torch.randint(len(text), (2, images), generator=draw)
    share = torch.rand(images, 1, generator=draw, dtype=torch.float64)
    own = share * text[pair[0]] + (1 - share) * text[pair[1]]
    own = own[:, None] + 0.1 * torch.randn(images, views, WIDTH, generator=draw, dtype=torch.float64)
    return F.normalize(own, dim=-1)


class Plain:
    """The rules in the order of the paper: lists of (entropy, feature, value) of each class."""

    def __init__(self, text, scale):
        self.text, self.scale = text, scale
        self.positive, self.negative = ([[] for _ in text] for _ in range(2))

    def keep(self, lists, label, item, most):
        if len(lists[label]) < most:
            lists[label].append(item)
        elif item[0] < max(kept[0] for kept in lists[label]):
            lists[label].remove(max(lists[label], key=lambda kept: kept[0]))
            lists[label].append(item)

    def __call__(self, views):
        logits = self.scale * views @ self.text.T
        certain = np.argsort(entropy(softmax(logits, 1), axis=1), kind="stable")[: max(1, len(views) // 10)]
        feature, mean, p = views[certain].mean(0), logits[certain].mean(0), softmax(logits[certain], 1).mean(0)
        label, h = int(mean.argmax()), float(entropy(p))
        self.keep(self.positive, label, (h, feature, np.eye(len(p))[label]), 3)
        if 0.2 < h / math.log2(len(p)) < 0.5:
            self.keep(self.negative, label, (h, feature, (p > 0.03).astype(float)), 2)
        for lists, alpha, beta in ((self.positive, 2.0, 5.0), (self.negative, -0.117, 1.0)):
            for _, other, value in sum(lists, []):
                mean = mean + alpha * math.exp(-beta * (1 - feature @ other)) * value
        return mean


def contents(cache, label):
    """(entropy, feature, value) of a class, most certain first."""
    rows = slice(label * cache.capacity, (label + 1) * cache.capacity)
    kept = zip(cache.entropy[rows].tolist(), cache.keys[rows].numpy(), cache.values[rows].numpy(), strict=True)
    return sorted((item for item in kept if item[0] < math.inf), key=lambda item: item[0])


@pytest.mark.parametrize("views", [1, 20])
def test_logits_and_caches_over_a_stream(views):
    prompts = Prompts(tiny_clip(dtype=torch.float64), NAMES, TEMPLATES[0], TEMPLATES)
    method, blocks = TDA(prompts), stream(prompts, 200, views).split(7)
    plain = Plain(method.text.numpy(), float(prompts.clip.scale))
    for block in blocks:
        assert_close(method(block).numpy(), np.stack([plain(own) for own in block.numpy()]), rtol=0, atol=1e-9)
    for cache, lists in ((method.positive, plain.positive), (method.negative, plain.negative)):
        assert sum(map(len, lists)) > 5
        for label, expected in enumerate(lists):
            found, expected = contents(cache, label), sorted(expected, key=lambda item: item[0])
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                for mine, other in zip(ours, theirs, strict=True):
                    assert_close(np.asarray(mine), np.asarray(other), rtol=0, atol=1e-12)


def test_templates_are_the_data_s_the_authors_or_a_list():
    clip = tiny_clip()
    prompts = Prompts(clip, NAMES, TEMPLATES[0], TEMPLATES)
    for given, templates in (
        (None, TEMPLATES),
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        (["the {}"], ["the {}"]),
    ):
        method = TDA(prompts, templates=given)
        weights = open_clip.build_zero_shot_classifier(clip.model, clip.tokenizer, NAMES, templates)
        assert_close(method.text.T, weights, rtol=0, atol=1e-6)
        assert method.forward_passes == len(templates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selected": 0}, "share of views"),
        ({"uncertain": (0.5, 0.2)}, r"expected uncertain to be two bounds in \[0, 1\], low and high, got \[0.5, 0.2\]"),
        ({"unlikely": (0.1, 0.2, 0.3)}, "expected unlikely to be two bounds"),
        ({"negative_capacity": 0}, "expected capacities >= 1, got 3 and 0"),
        ({"templates": "all"}, "unknown templates 'all'; valid: simple"),
        ({"templates": ["the cat"]}, "expected one {} in each, .* got 'the cat'"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        TDA(Prompts(tiny_clip(), NAMES, TEMPLATES[0]), **options)


# --- streams


class Stream(ZeroShot):
    """Zero-shot, which has no state, in a stream's order."""

    stream = True


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A task of two sets of 150 images in two stretches, by seed and part; its views are encoded once."""
    clip, data, cache = tiny_clip(), Digits(150, ["noise"]), tmp_path_factory.mktemp("views")
    protocol = Protocol(views=Views(count=2), block_size=16, cache=cache, template="a photo of {}.")
    return lambda seed=0, part=None: PromptTuning(data, clip, protocol, seed=seed, part=part)


def test_the_seed_draws_the_order_and_images_keep_their_labels_and_views(made):
    orders = [made(seed).order(images) for seed in (0, 0, 1) for images in made().sets]
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[4])
    assert not torch.equal(orders[0], orders[1])  # each set has its own
    assert orders[0].sort().values.tolist() == list(range(150))
    own, drawn = (list(made().run(method)) for method in (ZeroShot, Stream))
    rows = [[event for event in events if isinstance(event, Row)] for events in (own, drawn)]
    assert [(row.slice, row.metric) for row in rows[0]] == [(row.slice, row.metric) for row in rows[1]]
    assert [row.value for row in rows[0]] == pytest.approx([row.value for row in rows[1]], abs=1e-6)
    points = [[event.correct for event in events if isinstance(event, Point)] for events in (own, drawn)]
    assert points[0] != points[1]
    assert sum(points[0]) == sum(points[1])


@pytest.mark.parametrize("method", [TDA, partial(TPT, loss=core.AdaDEM(), online=True)])
def test_a_look_at_second_views_leaves_no_trace_in_a_stream(made, method):
    parts = (DataPart("search", 0.2, criteria=criteria) for criteria in (False, True))  # tuned without labels, or with
    found = [[event for event in made(part=part).run(method) if isinstance(event, Point)] for part in parts]
    assert found[0] == found[1]
