"""Prompts against the library's own encode_text, for both classes of models and all encodings."""

import open_clip
import pytest
import torch
from tiny_clip import KINDS, NAMES, TEXT, VISION, by_hook, tiny_clip
from torch.testing import assert_close

from dembench.tasks.prompt.clip import Clip, text_tower
from dembench.tasks.prompt.text import ENCODINGS, Prompts

TEMPLATE = "a photo of a {}."
both = pytest.mark.parametrize("kind", KINDS)
encodings = pytest.mark.parametrize("encoding", ENCODINGS)


@both
@encodings
def test_words_give_what_the_library_encodes(kind, encoding):
    clip = tiny_clip(kind)
    prompts = Prompts(clip, NAMES, TEMPLATE, encoding=encoding)
    words = prompts.words()
    assert words.shape == (4, 48)
    ids = clip.tokenizer([TEMPLATE.format(name) for name in NAMES])
    expected = clip.model.encode_text(ids, normalize=True)
    assert_close(prompts(words), expected, rtol=0, atol=1e-6)
    assert (expected @ expected.T).triu(1).max() < 0.999  # the classes do differ


@both
@encodings
@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_an_open_context_and_its_gradient_equal_the_library_with_a_hook(kind, encoding, pool):
    named = "eos_id" in open_clip.model.CLIPTextCfg.__dataclass_fields__
    if pool == "eos" and not named:
        pytest.skip("this open_clip pools at the greatest token alone")
    clip = tiny_clip(kind, torch.float64, pool_type=pool, **({"eos_id": 49407} if named else {}))
    context = torch.randn(2, 4, 48, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(NAMES), 24, dtype=torch.float64)
    prompts = Prompts(clip, NAMES, TEMPLATE, encoding=encoding, group=4)
    found = prompts(context)
    (gradient,) = torch.autograd.grad((found * weight).sum(), context)
    for row, own in enumerate(context):
        expected = by_hook(clip, TEMPLATE, own)
        assert_close(found[row], expected, rtol=0, atol=1e-12)
        (wanted,) = torch.autograd.grad((expected * weight).sum(), context)
        assert_close(gradient[row], wanted[row], rtol=0, atol=1e-12 * float(wanted.abs().max()))


@both
@encodings
def test_a_context_of_any_length(kind, encoding):
    clip = tiny_clip(kind)
    prompts = Prompts(clip, NAMES, TEMPLATE, encoding=encoding)
    for n in (1, 7, 14, 15):
        context = torch.randn(n, 48)
        if n == 15:
            with pytest.raises(ValueError, match="the longest prompt has 25 tokens, the text tower takes 24"):
                prompts(context)
            continue
        assert_close(prompts(context), by_hook(clip, "x " * n + "{}.", context), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected a context \(n, 48\)"):
        prompts(torch.randn(4, 24))


@pytest.mark.parametrize("group", [1, 2, 5, 64])
def test_the_groups_of_a_pack_change_nothing(group):
    clip = tiny_clip(dtype=torch.float64)
    context = torch.randn(3, 4, 48, dtype=torch.float64)
    whole = Prompts(clip, NAMES, TEMPLATE, encoding="full")(context)
    assert_close(Prompts(clip, NAMES, TEMPLATE, group=group)(context), whole, rtol=0, atol=1e-12)


def test_a_packed_class_sees_the_prefix_and_itself():
    pack = Prompts(tiny_clip(), ("cat", "polar bear"), "a {}")._pack(1)[0]
    tokens = ["<", "ctx", "cat", ">", "polar", "bear", ">"]
    seen = [{tokens[k] + str(k) for k in range(7) if row[k] == 0} for row in pack.mask]
    assert seen[3] == {"<0", "ctx1", "cat2", ">3"}
    assert seen[6] == {"<0", "ctx1", "polar4", "bear5", ">6"}
    assert seen[1] == {"<0", "ctx1"}
    assert pack.places.tolist() == [2, 3, 2, 3, 4]
    assert pack.ends.tolist() == [1, 4]


def test_the_context_counts_tokens_and_not_words():
    clip = tiny_clip()
    prompts = Prompts(clip, NAMES, "a photo of an extraordinarily large {}, seen.")
    assert len(prompts.words()) == len(clip.tokenizer.encode("a photo of an extraordinarily large"))
    assert len(prompts.words()) > 6 - 1
    expected = clip.model.encode_text(
        clip.tokenizer([f"a photo of an extraordinarily large {name}, seen." for name in NAMES]), normalize=True
    )
    assert_close(prompts(prompts.words()), expected, rtol=0, atol=1e-6)
    assert Prompts(clip, NAMES, "{} in the wild").words().shape == (0, 48)


def test_prompts_that_do_not_fit_are_refused():
    clip = tiny_clip()
    with pytest.raises(ValueError, match="has more than the 24 tokens"):
        Prompts(clip, ["very " * 30 + "long"], TEMPLATE)
    exact = "x " * 17 + "y"  # with start, four words, the full stop and end: 24 tokens + 1
    with pytest.raises(ValueError, match="has more than the 24 tokens"):
        Prompts(clip, [exact], TEMPLATE)
    Prompts(clip, [exact.removeprefix("x ")], TEMPLATE)
    with pytest.raises(ValueError, match="template with one {}"):
        Prompts(clip, NAMES, "a photo")
    with pytest.raises(ValueError, match="one or more class names"):
        Prompts(clip, [], TEMPLATE)
    with pytest.raises(ValueError, match="unknown encoding 'pack'; valid: packed, truncated, full"):
        Prompts(clip, NAMES, TEMPLATE, encoding="pack")


def build(kind, **text):
    return KINDS[kind](embed_dim=24, vision_cfg=dict(VISION), text_cfg={**TEXT, **text})


@both
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"no_causal_mask": True}, "is not causal"),
        ({"pool_type": "last"}, "pools by 'last'"),
    ],
)
def test_towers_that_cannot_be_packed_are_refused_with_the_reason(kind, text, reason):
    with pytest.raises(ValueError, match=reason):
        text_tower(build(kind, **text))


def test_other_models_are_refused_with_the_reason():
    biased = open_clip.CLIP(embed_dim=24, vision_cfg=dict(VISION), text_cfg=dict(TEXT), init_logit_bias=-10.0)
    with pytest.raises(ValueError, match="logit bias"):
        text_tower(biased)
    with pytest.raises(ValueError, match="class token"):
        text_tower(build("CustomTextCLIP", embed_cls=True))
    custom = build("CustomTextCLIP")
    custom.text = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no token_embedding"):
        text_tower(custom)


def test_the_model_is_frozen_and_its_images_are_normalised():
    clip = tiny_clip()
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = clip.model.encode_image((images.float() / 255 - 0.5) / 0.5, normalize=True)
    assert_close(clip.encode_images(images), expected, rtol=0, atol=1e-6)
    assert clip.scale == pytest.approx(1 / 0.07)


def test_bf16_is_near():
    clip = tiny_clip()
    prompts = Prompts(clip, NAMES, TEMPLATE)
    exact = prompts(prompts.words())
    clip.bf16 = True
    near = prompts(prompts.words())
    assert near.dtype == torch.float32
    assert 1e-6 < (near - exact).abs().max() < 0.05


def test_a_clip_without_a_text_projection():
    clip = tiny_clip("CLIP")
    clip.model.text_projection = None
    assert isinstance(clip, Clip)
    prompts = Prompts(clip, NAMES, TEMPLATE)
    ids = clip.tokenizer([TEMPLATE.format(name) for name in NAMES])
    assert_close(prompts(prompts.words()), clip.model.encode_text(ids, normalize=True), rtol=0, atol=1e-6)
