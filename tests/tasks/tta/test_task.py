"""The corruption stream: made data with known answers, a spy in place of the method, real images where they are."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from made_stream import Constant, MadeData, NaNWhereMarked, Reader, Spy
from small_models import CLASSES, SmallNet
from torch import nn
from torch.testing import assert_close

from dembench import core
from dembench.tasks.base import Flag, Histogram, Note, Point, Row
from dembench.tasks.common.generated import GeneratedCIFAR10C
from dembench.tasks.tta.data import DigitsC
from dembench.tasks.tta.methods.norm import Norm
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.models import cifar_resnet
from dembench.tasks.tta.task import CorruptionTTA, Protocol

STANDARD_ORDER = (  # Hendrycks and Dietterich 2019, in the order in which continual streams show them
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
LOSSES = {"em": core.EM, "dem": lambda: core.DEM(1.2, 0.9), "adadem": core.AdaDEM}


def stream(task, make_method=Source):
    """Events by kind."""
    found = {kind: [] for kind in (Row, Point, Histogram, Flag, Note)}
    for event in task.run(make_method):
        found[type(event)].append(event)
    return found


def values(found, metric="error"):
    return {row.slice: row.value for row in found[Row] if row.metric == metric}


def spied(task):
    spies = []
    stream(task, lambda **given: spies.append(Spy(**given)) or spies[-1])
    (spy,) = spies
    return spy


def tent(model, loss="adadem", **options):
    return Tent(model, LOSSES[loss](), **options)


def cycle(n):
    return torch.arange(n) % CLASSES


def test_a_perfect_model_makes_no_error():
    found = stream(CorruptionTTA(MadeData(cycle(23)), Reader(), Protocol(reset=True, batch_size=4)))
    assert values(found) == {"fog/5": 0.0, "snow/5": 0.0, "contrast/5": 0.0, "mean": 0.0}
    p = math.exp(9) / (math.exp(9) + 4)
    for value in values(found, "nll").values():
        assert value == pytest.approx(-math.log(p), rel=1e-4)
    assert found[Flag] == []
    assert [h.predicted for h in found[Histogram]] == [(5, 5, 5, 4, 4)] * 3
    assert all(h.predicted == h.label for h in found[Histogram])
    assert all(point.correct == point.n for point in found[Point])


def test_a_constant_model_has_the_error_of_its_class_and_is_flagged():
    data = MadeData([1] * 7 + [0] * 6 + [2] * 7)
    found = stream(CorruptionTTA(data, Constant(), Protocol(reset=True, batch_size=8)))
    assert values(found) == pytest.approx({"fog/5": 13 / 20, "snow/5": 13 / 20, "contrast/5": 13 / 20, "mean": 13 / 20})
    p = torch.tensor([0.0, 2, 0, 0, 0]).softmax(0)
    assert values(found, "entropy")["mean"] == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    assert [(flag.kind, flag.slice) for flag in found[Flag]] == [
        ("collapse", "fog/5"),
        ("collapse", "snow/5"),
        ("collapse", "contrast/5"),
    ]
    assert all("100%" in flag.message for flag in found[Flag])
    assert found[Histogram][0] == Histogram("fog/5", (0, 20, 0, 0, 0), (6, 7, 7, 0, 0))


def test_a_constant_model_on_data_of_its_class_has_not_collapsed():
    found = stream(CorruptionTTA(MadeData([1] * 16 + [0] * 4), Constant(), Protocol(reset=True)))
    assert values(found)["mean"] == pytest.approx(0.2)
    assert found[Flag] == []


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["adam", "momentum", "sgd"])
def test_nan_is_flagged_where_it_is_and_a_reset_ends_it(kind, loss):
    def run(marked, reset):
        protocol = Protocol(reset=reset, batch_size=8, order_seed=None)
        task = CorruptionTTA(MadeData(cycle(40), marked=marked), NaNWhereMarked(), protocol)
        return stream(task, partial(tent, loss=loss, optimizer=kind))

    found, healthy, endless = run(["snow"], True), run([], True), run(["snow"], False)
    assert [flag.slice for flag in found[Flag] if flag.kind == "nan"] == ["snow/5"]
    for metric in ("nll", "entropy", "ece"):
        assert [name for name, value in values(found, metric).items() if math.isnan(value)] == ["snow/5", "mean"]
    for name in ("fog/5", "contrast/5"):
        rows = [[row for row in part[Row] if row.slice == name] for part in (found, healthy)]
        assert rows[0] == rows[1]
        points = [[point for point in part[Point] if point.slice == name] for part in (found, healthy)]
        assert points[0] == points[1]
    assert healthy[Flag] == []
    assert [flag.slice for flag in endless[Flag] if flag.kind == "nan"] == ["snow/5", "contrast/5"]


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(("images", "batch_size"), [(10, 4), (12, 4), (3, 4), (1, 1), (7, 200)])
def test_points_cover_every_image_once_and_len_counts_them(images, batch_size, reset):
    task = CorruptionTTA(MadeData(cycle(images)), SmallNet(), Protocol(reset=reset, batch_size=batch_size))
    found = stream(task)
    points = found[Point]
    assert len(task) == len(points) == 3 * math.ceil(images / batch_size)
    assert [point.step for point in points] == list(range(len(points)))
    for name in ("fog/5", "snow/5", "contrast/5"):
        own = [point for point in points if point.slice == name]
        assert [point.n for point in own[:-1]] == [batch_size] * (len(own) - 1)
        assert sum(point.n for point in own) == images
        assert values(found)[name] == pytest.approx(1 - sum(point.correct for point in own) / images)
        assert {row.n for row in found[Row] if row.slice == name} == {images}
    assert {row.n for row in found[Row] if row.slice == "mean"} == {3 * images}


def test_points_and_rows_are_those_of_the_methods_logits():
    seen = []

    class Listening(Tent):
        def __call__(self, x):
            seen.append(super().__call__(x))
            return seen[-1]

    data = MadeData(cycle(30))
    protocol = Protocol(reset=False, batch_size=8, order_seed=None)
    found = stream(CorruptionTTA(data, SmallNet(), protocol), lambda model: Listening(model, core.EM(), lr=1e-2))
    entropies = [-(z.softmax(1) * z.log_softmax(1)).sum(1) for z in seen]
    assert_close(torch.tensor([p.entropy for p in found[Point]]), torch.stack([h.mean() for h in entropies]))
    assert_close(torch.tensor([p.loss for p in found[Point]]), torch.stack([h.mean() for h in entropies]))
    assert [p.updated for p in found[Point]] == [8, 8, 8, 6] * 3
    for number, name in enumerate(("fog/5", "snow/5", "contrast/5")):
        logits = torch.cat(seen[4 * number : 4 * number + 4])
        assert values(found)[name] == pytest.approx((logits.argmax(1) != data.labels).double().mean().item())
        assert values(found, "nll")[name] == pytest.approx(
            nn.functional.cross_entropy(logits, data.labels).item(), 1e-5
        )
        assert values(found, "entropy")[name] == pytest.approx(
            torch.cat(entropies[4 * number : 4 * number + 4]).mean().item(), rel=1e-5
        )


def test_the_mean_is_that_of_the_slices_and_comes_last():
    found = stream(CorruptionTTA(MadeData(cycle(30)), SmallNet(), Protocol(reset=True, batch_size=8)), tent)
    assert [row.slice for row in found[Row][-4:]] == ["mean"] * 4
    for metric in ("error", "nll", "ece", "entropy"):
        own = values(found, metric)
        mean = own.pop("mean")
        assert len(set(own.values())) > 1
        assert mean == pytest.approx(math.fsum(own.values()) / 3)
    assert {(row.metric, row.unit) for row in found[Row]} == {
        ("error", "fraction"),
        ("nll", "nats"),
        ("ece", "fraction"),
        ("entropy", "nats"),
    }


def test_a_point_has_no_loss_where_nothing_is_optimised():
    for method in (Source, Norm):
        found = stream(CorruptionTTA(MadeData(cycle(6)), SmallNet(), Protocol(reset=True)), method)
        assert {(point.loss, point.updated) for point in found[Point]} == {(None, 0)}


def test_updates_count_each_sample_once_however_many_steps():
    task = CorruptionTTA(MadeData(cycle(10)), SmallNet(), Protocol(reset=True, batch_size=6))
    found = stream(task, partial(tent, steps=3))
    assert [(point.n, point.updated) for point in found[Point]] == [(6, 6), (4, 4)] * 3


def test_labels_follow_their_images():
    found = stream(CorruptionTTA(MadeData(cycle(50)), Reader(), Protocol(reset=True, order_seed=3)))
    assert values(found)["mean"] == 0


@pytest.mark.parametrize(("reset", "log"), [(True, ["reset", "batch", "batch"] * 3), (False, ["batch", "batch"] * 3)])
def test_single_domain_resets_before_each_corruption_and_continual_never(reset, log):
    assert spied(CorruptionTTA(MadeData(cycle(9)), Reader(), Protocol(reset=reset, batch_size=5))).log == log


def test_a_reset_makes_corruptions_independent_of_those_before():
    def rows(reset, corruptions):
        protocol = Protocol(reset=reset, corruptions=corruptions, batch_size=8, order_seed=None)
        found = stream(CorruptionTTA(MadeData(cycle(40)), SmallNet(), protocol), partial(tent, lr=1e-2))
        return [row for row in found[Row] if row.slice == "contrast/5"]

    assert rows(True, ["fog", "snow", "contrast"]) == rows(True, ["contrast"]) == rows(False, ["contrast"])
    assert rows(False, ["fog", "snow", "contrast"]) != rows(False, ["contrast"])


def test_the_method_is_given_a_model_and_images_from_0_to_1_and_nothing_else():
    data = MadeData(cycle(9))
    spy = spied(CorruptionTTA(data, Reader(), Protocol(reset=True, batch_size=5, order_seed=None)))
    assert list(spy.given) == ["model"]
    shown = torch.cat([data.domain(corruption, 5)[0] for corruption in data.corruptions])
    assert_close(torch.cat(spy.batches), shown.float() / 255)  # __call__ has seen this one argument and no other


def test_wrong_labels_change_the_error_and_not_one_logit():
    def run(labels):
        seen = []

        def make(model):
            method = tent(model)
            predict = method.predict
            method.predict = lambda x: seen.append(predict(x)) or seen[-1]
            return method

        found = stream(CorruptionTTA(MadeData(labels), SmallNet(), Protocol(reset=False, batch_size=8)), make)
        return torch.cat(seen), values(found)["mean"]

    (logits, error), (others, another) = run(cycle(30)), run((cycle(30) + 1) % CLASSES)
    assert torch.equal(logits, others)
    assert error != another


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_run_twice_gives_the_same_bits(loss, precision):
    def run(task):
        return list(task.run(partial(tent, loss=loss, lr=1e-2)))

    def fresh():
        return CorruptionTTA(MadeData(cycle(30)), SmallNet(), Protocol(False, batch_size=8), precision=precision)

    task = fresh()
    assert run(task) == run(fresh()) == run(task)


def test_a_method_leaves_nothing_behind_for_the_next():
    task = CorruptionTTA(MadeData(cycle(30)), SmallNet(), Protocol(reset=False, batch_size=8))
    before = [list(task.run(method)) for method in (Source, Norm)]
    list(task.run(partial(tent, lr=1e-2)))
    assert [list(task.run(method)) for method in (Source, Norm)] == before
    assert before[0] != before[1]


def test_bfloat16_gives_nearly_the_same_rows():
    def run(precision):
        protocol = Protocol(reset=True, batch_size=20)
        return stream(CorruptionTTA(MadeData(cycle(60)), SmallNet(), protocol, precision=precision), tent)

    half, single = run("bf16"), run("fp32")
    assert half != single
    for metric, tolerance in (("error", 0.06), ("entropy", 0.02), ("nll", 0.05)):
        assert values(half, metric) == pytest.approx(values(single, metric), abs=tolerance)


NOTES = (Note("made", "drawn here"), Note("frost", "made ice"), Note("snow", "made snow"))


@pytest.mark.parametrize(
    ("corruptions", "keys"),
    [
        (["fog"], ["made"]),
        (["fog", "frost"], ["made", "frost"]),
        (["snow", "frost"], ["made", "frost", "snow"]),
        (None, ["made", "snow"]),
    ],
)
def test_a_note_on_one_corruption_comes_only_with_it(corruptions, keys):
    data = MadeData(cycle(4), notes=NOTES)
    events = list(CorruptionTTA(data, Reader(), Protocol(reset=True, corruptions=corruptions)).run(Source))
    assert [event.key for event in events if isinstance(event, Note)] == keys
    assert all(isinstance(event, Note) for event in events[: len(keys)])  # before any number


@pytest.mark.parametrize(("corruptions", "keys"), [(["fog"], []), (["frost"], ["frost"])])
def test_made_frost_is_told_of_where_it_is_shown(corruptions, keys):
    task = CorruptionTTA(DigitsC(num_images=10), SmallNetOfTen(), Protocol(reset=True, corruptions=corruptions))
    assert [note.key for note in stream(task)[Note]] == keys


class SmallNetOfTen(SmallNet):
    def forward(self, x):
        return super().forward(x).repeat(1, 2)


def test_a_wrong_task_is_refused_before_any_work():
    data = MadeData(cycle(4))
    with pytest.raises(ValueError, match="unknown precision 'fp16'; nearest: bf16, fp32; valid: fp32, bf16"):
        CorruptionTTA(data, SmallNet(), Protocol(reset=True), precision="fp16")
    with pytest.raises(ValueError, match="unknown corruption 'gausian_noise'; nearest: gaussian_noise.*valid: "):
        CorruptionTTA(data, SmallNet(), Protocol(reset=True, corruptions=["fog", "gausian_noise"]))
    with pytest.raises(ValueError, match="the model has 10 classes, made has 5"):
        CorruptionTTA(data, cifar_resnet(20), Protocol(reset=True))
    assert data.asked == []


@pytest.mark.data
def test_resnet20_on_real_images(data_folder):
    data = GeneratedCIFAR10C(data_folder / "data" / "cifar10-jpeg.tar.gz", num_images=500)
    weights = data_folder / "weights" / "resnet20-12fca82f.th"
    protocol = Protocol(reset=True, corruptions=["gaussian_noise", "brightness"], batch_size=100)
    errors = {}
    for method in (Source, Norm):
        errors[method] = values(stream(CorruptionTTA(data, cifar_resnet(20, weights), protocol), method))
    net = cifar_resnet(20, weights).model.eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for corruption in protocol.corruptions:
        images, labels = data.domain(corruption, 5)
        assert len(images) == 500
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), 50)
        with torch.no_grad():
            predicted = torch.cat([net((part / 255 - mean) / std).argmax(1) for part in images.split(50)])
        by_hand = (predicted != labels).double().mean().item()
        assert abs(errors[Source][f"{corruption}/5"] - by_hand) <= 1 / 500  # one image on a class boundary may differ
    deviation = math.sqrt(0.25 / 500)
    assert errors[Norm]["gaussian_noise/5"] < errors[Source]["gaussian_noise/5"] - 4 * deviation
    assert errors[Source]["brightness/5"] < errors[Source]["gaussian_noise/5"] - 4 * deviation


@pytest.mark.gpu
@pytest.mark.parametrize("method", [Source, Norm, *LOSSES])
def test_cuda_gives_the_rows_and_points_of_the_cpu(method, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def run(device):
        make = method if method in (Source, Norm) else partial(tent, loss=method)
        protocol = Protocol(reset=False, batch_size=6)  # 40 batches a corruption: the host looks at several at once
        return stream(CorruptionTTA(MadeData(cycle(240)), SmallNet(), protocol, device=device), make)

    cpu, cuda = run("cpu"), run("cuda")
    assert [(p.step, p.slice, p.n, p.updated) for p in cuda[Point]] == [
        (p.step, p.slice, p.n, p.updated) for p in cpu[Point]
    ]
    for field in ("entropy", "loss"):
        got, want = ([getattr(p, field) or 0.0 for p in part[Point]] for part in (cuda, cpu))
        assert got == pytest.approx(want, abs=1e-3)
    for metric, tolerance in (("error", 2 / 240), ("nll", 1e-3), ("entropy", 1e-3)):
        assert values(cuda, metric) == pytest.approx(values(cpu, metric), abs=tolerance)
