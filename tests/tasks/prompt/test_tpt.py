"""TPT against a loop that is written down as its paper says, with the library's own text encoder, image by image."""

from copy import deepcopy

import pytest
import torch
from tiny_clip import KINDS, NAMES, by_hook, tiny_clip
from torch.nn import functional as F
from torch.testing import assert_close

from dembench import core
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose
from dembench.tasks.prompt.methods.tpt import TPT
from dembench.tasks.prompt.text import ENCODINGS, Prompts

TEMPLATE = "a photo of a {}."
LOSSES = {"em": core.EM, "dem": lambda: core.DEM(1.2, 0.6), "adadem": core.AdaDEM}
AGGREGATES = ("marginal", "mean_logits", "per_view")
losses = pytest.mark.parametrize("loss", LOSSES)
aggregates = pytest.mark.parametrize("aggregate", AGGREGATES)


def features(images=5, views=20, width=24, dtype=torch.float64, spread=0.7):
    """Views of an image lie about its own direction; scaled so that predictions differ between them."""
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(images, 1, width, generator=generator, dtype=torch.float64)
    return F.normalize(
        own + spread * torch.randn(images, views, width, generator=generator, dtype=torch.float64), dim=-1
    ).to(dtype)


def text_entropy(z):
    """TPT's: the input is the log of a distribution."""
    return -(z * z.exp()).sum(1)


def literal_tpt(clip, views, objective, lr, steps, share=0.1):
    """One image, views (V, E): the context of the words is tuned by AdamW on ``objective`` of the confident logits."""
    words = clip.tokenizer([TEMPLATE.partition("{}")[0]])[0, 1:5]
    context = clip.text_tower.token_embedding(words).detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([context], lr=lr)
    scale = clip.model.logit_scale.detach().exp()

    def logits(own):  # (K, E) to (K, C), as a batch of one, for its bits
        return scale * (own[None] @ by_hook(clip, TEMPLATE, context)[None].mT)[0]

    entropy = torch.distributions.Categorical(logits=logits(views).detach()).entropy()
    chosen = views[entropy.argsort(stable=True)[: int(len(views) * share)]]
    for _ in range(steps):
        optimizer.zero_grad()
        objective(logits(chosen)).backward()
        optimizer.step()
    with torch.no_grad():
        return context.detach(), logits(views[:1])[0]


def marginal_entropy(logits):
    """Entropy of the mean prediction, in the log domain."""
    average = logits.log_softmax(1).logsumexp(0) - torch.log(torch.tensor(len(logits), dtype=logits.dtype))
    return -(average * average.exp()).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lr", "steps"), [(5e-3, 1), (2e-2, 4)])
def test_em_on_the_marginal_is_tpt(kind, lr, steps):
    clip = tiny_clip(kind, torch.float64)
    views = features()
    expected = torch.stack([literal_tpt(clip, own, marginal_entropy, lr, steps)[1] for own in views])
    method = TPT(Prompts(clip, NAMES, TEMPLATE), core.EM(), aggregate="marginal", lr=lr, steps=steps)
    assert_close(method(views), expected, rtol=0, atol=1e-9)
    plain = clip.model.logit_scale.exp() * views[:, 0] @ by_hook(clip, TEMPLATE, method.context).T
    assert (expected - plain).abs().max() > 0.05  # the tuning did something


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_settings_give_the_literal_loop_to_the_last_bit(kind):
    clip = tiny_clip(kind)
    views = features(dtype=torch.float32)
    prompts = Prompts(clip, NAMES, TEMPLATE, encoding="full")
    method = TPT(prompts, text_entropy, aggregate="marginal", lr=2e-2, steps=3, shared_forward=False)
    for own in views:
        expected = literal_tpt(clip, own, marginal_entropy, 2e-2, 3)[1]
        assert_close(method(own[None])[0], expected, rtol=0, atol=0)


@losses
@aggregates
def test_every_loss_and_aggregate_follows_its_definition(loss, aggregate):
    clip = tiny_clip(dtype=torch.float64)
    views = features(views=40)

    def objective(logits):  # four views; the state, if there is any, lasts for the image
        if aggregate == "marginal":
            rows = (logits.softmax(1).mean(0)).log()[None]
        elif aggregate == "mean_logits":
            rows = logits.mean(0)[None]
        else:
            rows = logits
        return own_loss(rows).mean()

    expected = []
    for own in views:
        own_loss = LOSSES[loss]()
        expected.append(literal_tpt(clip, own, objective, 1e-2, 3)[1])
    method = TPT(Prompts(clip, NAMES, TEMPLATE), LOSSES[loss](), aggregate=aggregate, lr=1e-2, steps=3)
    assert_close(method(views), torch.stack(expected), rtol=0, atol=1e-8)


def surprise(p):
    return -(p * p.log()).sum(-1)


FAMILY = {  # of the rows' probabilities (K, C)
    "gce": lambda p: ((1 - p.max(1).values ** 0.8) / 0.8).mean(),
    "slr": lambda p: -(p.clamp(max=0.99) * (p.clamp(max=0.99) / (1 - p.clamp(max=0.99))).log()).sum(1).mean(),
    "marginal_entropy": lambda p: surprise(p.mean(0)),  # on single views, this is TPT
    "im": lambda p: surprise(p).mean() - surprise(p.mean(0)),
    "tsallis": lambda p: (1 - (p**2).sum(1)).mean(),
    "renyi": lambda p: -(p**2).sum(1).log().mean(),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_of_losses_on_views_and_on_their_mean(name):
    """From the configurations; information maximisation has no effect on one row, and is refused."""
    config = experiment.resolve(compose({"task": "prompt", "loss": name}))
    assert config["method"]["aggregate"] == "per_view"
    clip, views = tiny_clip(dtype=torch.float64), features(images=3, views=40)
    prompts = Prompts(clip, NAMES, TEMPLATE)
    for aggregate in ("per_view",) if name == "im" else ("per_view", "marginal"):
        rows = (lambda z: z.softmax(1)) if aggregate == "per_view" else (lambda z: z.softmax(1).mean(0, keepdim=True))
        expected = [literal_tpt(clip, own, lambda z, p=rows: FAMILY[name](p(z)), 1e-2, 2)[1] for own in views]
        method = TPT(prompts, experiment.build_loss(config), aggregate=aggregate, lr=1e-2, steps=2)
        assert_close(method(views), torch.stack(expected), rtol=0, atol=1e-8)
        assert not {note.key for note in method.notes} & {"no effect"}
    plain = {"views": 40, "loss": experiment.build_loss(config)}
    TPT.check(**plain)
    for settings in ({"aggregate": "marginal"}, {"aggregate": "mean_logits"}, {"selected": 0.04}):
        if name == "im":
            with pytest.raises(ValueError, match=r"^tpt: this loss compares predictions, and .* leaves it one: take"):
                TPT.check(**plain, **settings)
        else:
            TPT.check(**plain, **settings)


def test_a_loss_without_effect_is_refused_before_the_run():
    words = {"task": "prompt", "loss": "im", "model.steps": 2, "data.num_images": 6}
    experiment.prepare(compose(words))
    with pytest.raises(ConfigError, match="selected=0.1 of 19 views leaves it one: take .* 20 views or more"):
        experiment.prepare(compose({**words, "protocol.views.count": 19}))


@losses
@pytest.mark.parametrize("steps", [1, 3])
def test_speed_changes_nothing(loss, steps):
    clip = tiny_clip(dtype=torch.float64)
    views = features(images=4)
    found = []
    for encoding in ENCODINGS:
        for shared in (True, False):
            for block in (1, 3):
                prompts = Prompts(clip, NAMES, TEMPLATE, encoding=encoding)
                method = TPT(prompts, LOSSES[loss](), lr=1e-2, steps=steps, shared_forward=shared)
                found.append(torch.cat([method(part) for part in views.split(block)]))
    for other in found[1:]:
        assert_close(other, found[0], rtol=0, atol=1e-8)


def test_a_block_is_as_many_optimizers_of_one_image():
    """AdamW treats every number by itself; exact, whatever the gradients are."""
    gradients = torch.randn(6, 5, 4, 8)
    block = torch.zeros(5, 4, 8).requires_grad_()
    single = [torch.zeros(1, 4, 8).requires_grad_() for _ in range(5)]
    optimizers = [torch.optim.AdamW([block], lr=5e-3), *(torch.optim.AdamW([one], lr=5e-3) for one in single)]
    for gradient in gradients:
        block.grad = gradient
        for one, own in zip(single, gradient, strict=True):
            one.grad = own[None]
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(block, torch.cat(single))


@losses
def test_images_are_episodes_whatever_their_order(loss):
    views = features(images=6)
    prompts = Prompts(tiny_clip(dtype=torch.float64), NAMES, TEMPLATE)
    first = TPT(prompts, LOSSES[loss](), lr=1e-2, steps=2)(views)
    method = TPT(prompts, LOSSES[loss](), lr=1e-2, steps=2)
    method(views[:3])
    order = torch.tensor([4, 2, 5, 0, 1, 3])
    assert_close(method(views[order]), first[order], rtol=0, atol=1e-9)


def test_the_given_loss_is_left_alone():
    loss = core.AdaDEM(len(NAMES))
    TPT(Prompts(tiny_clip(), NAMES, TEMPLATE), loss, steps=2)(features(dtype=torch.float32))
    assert torch.equal(loss.table, torch.full((len(NAMES), len(NAMES)), 1 / len(NAMES)))


def test_online_is_one_loss_that_remembers():
    clip = tiny_clip(dtype=torch.float64)
    views = features(images=6)
    remembered = core.AdaDEM()
    expected = [literal_tpt(clip, own, lambda z: remembered(z).mean(), 1e-2, 2)[1] for own in views]
    method = TPT(Prompts(clip, NAMES, TEMPLATE), core.AdaDEM(), lr=1e-2, steps=2, online=True)
    assert_close(torch.cat([method(part) for part in views.split(4)]), torch.stack(expected), rtol=0, atol=1e-8)
    assert any(note.key == "online" for note in method.notes)
    episodic = TPT(Prompts(clip, NAMES, TEMPLATE), core.AdaDEM(), lr=1e-2, steps=2)(views)
    assert (episodic - torch.stack(expected)).abs().max() > 1e-3


def test_an_offset_cannot_act_on_a_marginal_and_that_is_said():
    prompts = Prompts(tiny_clip(dtype=torch.float64), NAMES, TEMPLATE)
    views = features()

    def tuned(loss, aggregate):
        method = TPT(prompts, loss, aggregate=aggregate, lr=1e-2, steps=3)
        return method(views), {note.key for note in method.notes}

    em, keys = tuned(core.EM(), "marginal")
    assert keys == {"aggregate"}
    dem, keys = tuned(core.DEM(1.0, 0.3), "marginal")
    assert keys == {"aggregate", "no effect"}
    assert_close(dem, em, rtol=0, atol=1e-8)
    dem, keys = tuned(core.DEM(1.0, 0.3), "per_view")
    assert keys == {"aggregate"}
    assert (dem - tuned(core.EM(), "per_view")[0]).abs().max() > 1e-3
    assert tuned(core.AdaDEM(), "marginal")[1] == {"aggregate"}


def test_adadem_pushes_as_its_closed_form_says():
    """One step from a table that is new: dL/dz = -(p (z - p.z) + 0.9 (p - 1/C)) / delta for distinct pseudo labels."""
    z = torch.diag(torch.linspace(1.0, 3.0, 5, dtype=torch.float64)).requires_grad_()
    from dembench.tasks.prompt.episodes import Episodes

    episodes = Episodes(core.AdaDEM())
    episodes.start(1)
    (found,) = torch.autograd.grad(5 * episodes(z[None]).sum(), z)
    p = z.softmax(1)
    centred = z - (p * z).sum(1, keepdim=True)
    delta = (p * (centred + 1)).abs().sum(1, keepdim=True)
    assert_close(found, -(p * centred + 0.9 * (p - 1 / 5)) / delta, rtol=0, atol=1e-12)


def test_costs_are_counted():
    method = TPT(Prompts(tiny_clip(), NAMES, TEMPLATE), core.EM(), steps=3)
    assert method.forward_passes == 1  # shared by all images
    method(features(images=4, dtype=torch.float32))
    assert (method.forward_passes, method.backward_passes, method.updated) == (1 + 4 * 3, 4 * 3, 4)
    assert method.last_loss is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"aggregate": "mean"},
            "unknown aggregate 'mean'.*valid: marginal, mean_logits, per_view",
        ),
        ({"lr": 0}, "expected lr > 0"),
        ({"steps": 0}, "steps >= 1"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; nearest: adamw; valid: adamw, sgd"),
        ({"selected": 0}, r"selected in \(0, 1\]"),
    ],
)
def test_settings_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TPT(Prompts(tiny_clip(), NAMES, TEMPLATE), core.EM(), **options)


def test_a_template_without_words_cannot_be_tuned():
    with pytest.raises(ValueError, match="has no words before {} to tune"):
        TPT(Prompts(tiny_clip(), NAMES, "{} in the wild"), core.EM())


def test_sgd_is_an_option():
    clip = tiny_clip(dtype=torch.float64)
    views = features(images=2)
    prompts = Prompts(clip, NAMES, TEMPLATE)
    method = TPT(prompts, core.EM(), aggregate="marginal", lr=0.5, optimizer="sgd", weight_decay=0.0)
    context = method.context.clone().requires_grad_()
    logits = clip.scale * views[0] @ prompts(context).T
    chosen = torch.distributions.Categorical(logits=logits).entropy().argsort()[:2]
    (gradient,) = torch.autograd.grad(marginal_entropy(logits[chosen]), context)
    expected = clip.scale * views[0, 0] @ prompts(context.detach() - 0.5 * gradient).T
    assert_close(method(views)[0], expected, rtol=0, atol=1e-9)


def test_a_loss_with_a_state_but_no_reset_starts_anew_too():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, z):
            self.calls += 1
            return core.EM()(z) * self.calls

    prompts = Prompts(tiny_clip(dtype=torch.float64), NAMES, TEMPLATE)
    views = features(images=3)
    method = TPT(prompts, Counting(), steps=2, optimizer="sgd", lr=0.1)
    first = method(views)
    assert torch.equal(method(deepcopy(views)), first)


def test_no_loss_is_refused():
    with pytest.raises(ValueError, match="lowers a loss and was given none"):
        TPT(Prompts(tiny_clip(), NAMES, TEMPLATE), None)
