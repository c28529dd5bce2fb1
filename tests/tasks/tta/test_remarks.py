"""What a run says about its own settings, and what it refuses once the method is there."""

from functools import partial

import pytest
import torch
import torchvision
from made_stream import MadeData, Reader, Spy
from small_models import CLASSES, SmallNet
from torch import nn

from dembench.harness.compose import ConfigError
from dembench.tasks.base import Note, Point
from dembench.tasks.tta.methods.norm import Norm
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.methods.tipi import TIPI
from dembench.tasks.tta.methods.ttc import TTC
from dembench.tasks.tta.streams import Protocol
from dembench.tasks.tta.task import CorruptionTTA


def cycle(n):
    return torch.arange(n) % CLASSES


def tent(model, **options):
    return Tent(model, lambda z: z.logsumexp(1), **options)


def notes(model, method, images=12, **options):
    task = CorruptionTTA(MadeData(cycle(images)), model, Protocol(**{"reset": True, "batch_size": 6, **options}))
    return {event.key: event.text for event in task.run(method) if isinstance(event, Note)}


def layer_norm(channels):
    return nn.GroupNorm(1, channels)


def test_norm_without_batch_norm_is_called_source():
    assert "predicts as Source" in notes(SmallNet(layer_norm), Norm)["statistics"]
    assert "statistics" not in notes(SmallNet(), Norm)
    assert "statistics" not in notes(SmallNet(layer_norm), Source)
    assert "statistics" not in notes(SmallNet(layer_norm), tent)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, False),  # two batches a corruption: the second has something to show
        ({"batch_size": 12}, True),
        ({"batch_size": 200}, True),
        ({"batch_size": 200, "reset": False}, False),
        ({"episodic": True}, True),
        ({"episodic": True, "reset": False}, True),
    ],
)
def test_updates_that_no_prediction_sees_are_told_of(options, told):
    assert ("updates" in notes(SmallNet(), tent, **options)) is told
    assert "updates" not in notes(SmallNet(), Source, **options)


def test_ttc_tells_where_it_accumulates_nothing():
    def ttc(model, **options):
        return TTC(model, lambda z: z.logsumexp(1), **options)

    assert "accumulation" not in notes(SmallNet(), tent)
    assert "accumulation" not in notes(SmallNet(), lambda model: ttc(model, accumulate=12))  # two batches of 6
    told = notes(SmallNet(), lambda model: ttc(model, accumulate=8))["accumulation"]
    assert told == "accumulate=8 images at batches of 6 is Q = 1: each batch is an update of its own"


def test_that_note_is_true():
    def entropies(method, **options):
        task = CorruptionTTA(MadeData(cycle(12)), SmallNet(), Protocol(True, batch_size=12, **options))
        return [event.entropy for event in task.run(method) if isinstance(event, Point)]

    assert entropies(tent) == pytest.approx(entropies(Norm), rel=1e-5)


def test_batches_of_one_image_are_told_of():
    assert "statistics of one image" in notes(SmallNet(), Norm, batch_size=1)["batch"]
    assert "batch" in notes(SmallNet(), tent, images=13)  # the last batch of each corruption
    assert "batch" not in notes(SmallNet(), tent, images=12)
    assert "batch" not in notes(SmallNet(), Source, batch_size=1)
    assert "batch" not in notes(SmallNet(layer_norm), tent, batch_size=1)


def test_a_sliding_window_is_told_of_as_one():
    told = notes(SmallNet(), tent, batch_size=1, window=4)["batch"]
    assert "until the window has 4 images" in told
    assert "batches of a single image" not in told


def test_tipi_tells_where_the_loss_is_not_used():
    told = TIPI(SmallNet(), nn.Identity(), entropy_weight=None, start=None, preset="official").notes[-1].text
    assert "weight of the loss: 0 up to 10 classes, 5 up to 100, 1 above (with 0 the loss is not used)" in told
    assert "weight of the loss: 2.5 " in TIPI(SmallNet(), nn.Identity(), entropy_weight=2.5).notes[-1].text


class Pooled(SmallNet):
    """A BatchNorm behind the pooling: one value per channel and image."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm1d(8)

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        return self.linear(self.last(y.mean((2, 3))))


@pytest.mark.parametrize(("images", "batch_size"), [(12, 1), (13, 4)])
@pytest.mark.parametrize("method", [Norm, partial(Norm, statistics="mixed"), partial(Norm, statistics="ema"), tent])
def test_a_batch_norm_that_would_see_one_value_is_refused_in_one_line(method, images, batch_size):
    with pytest.raises(ConfigError, match="a batch of one image of 12x12 leaves a BatchNorm .* choose"):
        notes(Pooled(), method, images, batch_size=batch_size)
    notes(Pooled(), Source, images, batch_size=batch_size)
    notes(Pooled(), method, 12, batch_size=4)


def test_a_small_image_in_a_network_for_large_ones_is_refused_alone():
    net = torchvision.models.resnet18(num_classes=CLASSES)
    with pytest.raises(ConfigError, match="choose protocol.batch_size"):
        notes(net, Norm, 3, batch_size=2, corruptions=["fog"])
    assert "batch" not in notes(net, Norm, 4, batch_size=2, corruptions=["fog"])


def test_the_probe_of_one_image_leaves_no_trace():
    """The same numbers whether or not there is a batch of one later in the stream."""

    def first(images):
        torch.manual_seed(0)
        net = nn.Sequential(SmallNet(), nn.Dropout(0.5))
        task = CorruptionTTA(MadeData(cycle(images)), net, Protocol(True, batch_size=4, order_seed=None))
        return next(event for event in task.run(tent) if isinstance(event, Point))

    assert first(9).entropy == first(8).entropy


class Wanting(Spy):
    """A method that asks for clean images."""

    source_images = 7

    def see_source(self, images):
        self.log.append("source")
        self.seen = images


def test_clean_images_are_shown_before_the_stream_and_told_of():
    class WithClean(MadeData):
        def clean(self, num_images, seed):
            return torch.full((num_images, 3, 12, 12), seed, dtype=torch.uint8), Note("clean", f"saw {num_images}")

    made = []
    task = CorruptionTTA(WithClean(cycle(6)), Reader(), Protocol(True, batch_size=6), seed=5)
    events = list(task.run(lambda **given: made.append(Wanting(**given)) or made[-1]))
    assert made[0].log[0] == "source"
    assert made[0].seen.shape == (7, 3, 12, 12)
    assert made[0].seen.unique().tolist() == [5]
    assert events[0] == Note("clean", "saw 7")


def test_clean_images_that_are_not_there_are_refused_in_one_line():
    class WithoutClean(MadeData):
        def clean(self, num_images, seed):
            raise FileNotFoundError("no clean images; give data.source=DIR")

    for data, message in ((MadeData(cycle(6)), "made has none"), (WithoutClean(cycle(6)), "give data.source=DIR")):
        with pytest.raises(ConfigError, match=message):
            list(CorruptionTTA(data, Reader(), Protocol(True)).run(Wanting))
