"""Which images come when: every stream against what is written out by hand, and settings that are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_stream import MadeData, Reader, Spy
from small_models import CLASSES, SmallNet
from torch.testing import assert_close

from dembench.tasks.base import Histogram, Point, Row
from dembench.tasks.common.corruptions import CORRUPTIONS
from dembench.tasks.tta.data import DigitsC
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.streams import Domain, Protocol, dirichlet_chunks, image_order, parts
from dembench.tasks.tta.task import CorruptionTTA

STANDARD_ORDER = (  # Hendrycks and Dietterich 2019, in the order in which continual streams show them
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)


GOLDEN = [1, 7, 0, 5, 4, 2, 3, 6]  # of eight images of fog at severity 5, seed 0


class Told(MadeData):
    """Images that say what they are: green their number, blue 10 times their corruption's number plus the severity."""

    def domain(self, corruption, severity):
        images, labels = super().domain(corruption, severity)
        images[:, 2, 0, 0] = 10 * CORRUPTIONS.index(corruption) + severity
        return images, labels


class PeekingSpy(Spy):
    def peek(self, x):
        self.log.append("peek")
        self.batches.append(x.clone())
        return self.given["model"](x)

    def __call__(self, x):
        return super().__call__(x.clone())


def cycle(n):
    return torch.arange(n) % CLASSES


def told(images):
    """Red, green and blue of the pixels that tell, 0 to 255."""
    return images[:, :, 0, 0].mul(255).round().long().tolist()


def shown(data, protocol):
    """(corruption, severity, number) of each image in the order of the stream."""
    spies = []
    list(CorruptionTTA(data, Reader(), protocol).run(lambda **given: spies.append(Spy(**given)) or spies[-1]))
    return [(CORRUPTIONS[blue // 10], blue % 10, green) for _, green, blue in told(torch.cat(spies[0].batches))]


def spied(task, kind=Spy):
    spies = []
    events = list(task.run(lambda **given: spies.append(kind(**given)) or spies[-1]))
    return spies[0], events


def errors(events):
    return {event.slice: event.value for event in events if isinstance(event, Row) and event.metric == "error"}


def test_the_standard_order_is_the_default():
    task = CorruptionTTA(DigitsC(num_images=10), SmallNet(), Protocol(reset=False))
    assert task.corruptions == STANDARD_ORDER
    data = MadeData(cycle(4), corruptions=CORRUPTIONS)
    found = list(CorruptionTTA(data, Reader(), Protocol(reset=False, severity=2)).run(Source))
    assert list(errors(found)) == [f"{c}/2" for c in STANDARD_ORDER] + ["mean"]
    assert data.asked == [(corruption, 2) for corruption in STANDARD_ORDER]


def test_the_protocols_own_order_is_kept():
    data = MadeData(cycle(4))
    list(CorruptionTTA(data, Reader(), Protocol(reset=False, corruptions=["snow", "fog"])).run(Source))
    assert data.asked == [("snow", 5), ("fog", 5)]


def test_the_seed_shuffles_each_corruption_and_null_keeps_the_order():
    def order(seed):
        protocol = Protocol(True, batch_size=7, order_seed=seed)
        return spied(CorruptionTTA(MadeData(cycle(50)), Reader(), protocol))[0].numbers()

    assert order(None) == [*range(50)] * 3
    assert order(1) == order(1)
    shuffled = [order(seed)[start : start + 50] for seed in (0, 1) for start in (0, 50, 100)]
    assert all(sorted(part) == [*range(50)] for part in shuffled)
    assert len({tuple(part) for part in [*shuffled, range(50)]}) == 7  # no two alike, none as it was


def test_an_order_belongs_to_its_corruption_severity_and_seed_and_to_nothing_else():
    def order(name, corruptions, severity=5, seed=0):
        found = shown(Told(cycle(40), CORRUPTIONS), Protocol(True, severity, corruptions, order_seed=seed))
        return [number for corruption, _, number in found if corruption == name]

    alone = order("snow", ["snow"])
    assert alone == order("snow", ["fog", "snow"]) == order("snow", None) == order("snow", ["snow", "fog"])
    others = (order("fog", None), order("snow", None, 4), order("snow", None, 5, 1), order("snow", None, 5, -1))
    assert len({tuple(found) for found in (alone, *others)}) == 5
    assert order("snow", ["snow"], seed=10**30) != alone  # a seed of any size


def test_an_order_is_the_same_on_every_machine():
    fog = Domain("fog", 5, "fog/5")
    assert image_order(Protocol(True), [fog], [torch.zeros(8)]).tolist() == GOLDEN
    assert image_order(Protocol(True), [fog], [torch.zeros(6)]).tolist() == [k for k in GOLDEN if k < 6]


def test_orders_are_uniform():
    """Where an image lands does not depend on where it was: correlation within four standard deviations of 0."""
    n = 4000
    for name in ("fog", "snow"):
        order = image_order(Protocol(True, order_seed=3), [Domain(name, 5, "")], [torch.zeros(n)])
        assert sorted(order.tolist()) == list(range(n))
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 4 / n**0.5


def test_several_severities_come_one_after_the_other_with_all_corruptions_each():
    data = Told(cycle(6), ("fog", "snow"))
    task = CorruptionTTA(data, Reader(), Protocol(True, severity=[5, 3], batch_size=4))
    spy, events = spied(task)
    assert list(errors(events)) == ["fog/5", "snow/5", "fog/3", "snow/3", "mean"]
    assert spy.log == ["reset", "batch", "batch"] * 4
    assert len(task) == sum(isinstance(event, Point) for event in events) == 8


def test_visits_repeat_the_stream_in_other_orders_and_are_what_is_measured():
    data, once = Told(cycle(40), CORRUPTIONS), Protocol(False, corruptions=["snow", "fog"], batch_size=16)
    found = shown(data, replace(once, visits=3))
    assert found[:80] == shown(data, once)
    visits = [found[start : start + 80] for start in (0, 80, 160)]
    assert [[name for name, _, _ in visit] for visit in visits] == [["snow"] * 40 + ["fog"] * 40] * 3
    assert all(sorted(visit) == sorted(visits[0]) for visit in visits)
    assert len({tuple(visit) for visit in visits}) == 3
    spy, events = spied(CorruptionTTA(data, Reader(), replace(once, visits=3)))
    assert spy.log.count("reset") == 0
    assert [row.n for row in events if isinstance(row, Row) and row.metric == "error"] == [80, 80, 80, 240]
    assert list(errors(events)) == ["visit 1", "visit 2", "visit 3", "mean"]
    assert [point.n for point in events if isinstance(point, Point)] == [16, 16, 8] * 6  # a batch has one domain


def test_gradual_climbs_up_and_down_again_and_is_never_reset():
    data = Told(cycle(3), ("fog", "snow"))
    protocol = Protocol(False, severity=[1, 2, 3, 4, 5], gradual=True)
    spy, events = spied(CorruptionTTA(data, Reader(), protocol))
    climb = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert data.asked == [(name, severity) for name in ("fog", "snow") for severity in climb]
    names = [
        f"{c}/{s}{way}" for c in ("fog", "snow") for s, way in zip(climb, [""] * 5 + [" falling"] * 4, strict=True)
    ]
    assert list(errors(events)) == [*names, "mean"]
    assert "reset" not in spy.log
    assert [event.slice for event in events if isinstance(event, Point)] == names


def test_mixed_shows_every_image_of_every_domain_once_in_one_shuffle():
    data = Told(cycle(30), ("fog", "snow", "contrast"))
    protocol = Protocol(False, severity=[5, 2], mixed=True, batch_size=50)
    found = shown(data, protocol)
    every = {(c, s, k) for c in ("fog", "snow", "contrast") for s in (5, 2) for k in range(30)}
    assert len(found) == len(every) == 180
    assert set(found) == every
    assert min(len({c for c, _, _ in found[start : start + 30]}) for start in range(0, 180, 30)) == 3
    without = shown(Told(cycle(30), ("fog", "contrast")), protocol)
    assert without == [image for image in found if image[0] != "snow"]  # the others keep their order


def test_mixed_gives_the_error_of_each_domain():
    class PartlyWrong(Told):
        """Of the domain number d, the first 3 * d labels are wrong."""

        def domain(self, corruption, severity):
            images, labels = super().domain(corruption, severity)
            wrong = torch.arange(len(labels)) < 3 * self.corruptions.index(corruption)
            return images, torch.where(wrong, (labels + 1) % CLASSES, labels)

    data = PartlyWrong(cycle(30), ("fog", "snow", "contrast"))
    task = CorruptionTTA(data, Reader(), Protocol(False, mixed=True, batch_size=20))
    events = list(task.run(Source))
    assert errors(events) == pytest.approx({"fog/5": 0, "snow/5": 0.1, "contrast/5": 0.2, "mean": 0.1})
    points = [event for event in events if isinstance(event, Point)]
    assert {point.slice for point in points} == {"mixed"}
    assert [point.n for point in points] == [20, 20, 20, 20, 10]
    assert len(task) == 5
    assert sum(point.correct for point in points) == 81
    histograms = [event for event in events if isinstance(event, Histogram)]
    assert [(h.slice, sum(h.label)) for h in histograms] == [("fog/5", 30), ("snow/5", 30), ("contrast/5", 30)]


def test_a_mixed_stream_of_one_domain_is_that_domain():
    def rows(**options):
        protocol = Protocol(False, corruptions=["snow"], batch_size=16, **options)
        task = CorruptionTTA(MadeData(cycle(60)), SmallNet(), protocol)
        return [e for e in task.run(lambda model: Tent(model, lambda z: z.logsumexp(1), lr=1e-2)) if isinstance(e, Row)]

    assert rows(mixed=True) == rows()


def test_labels_can_be_sorted_and_keep_their_shuffle_within():
    data = Told(cycle(40), ("fog", "snow"))
    plain, by_label = (shown(data, Protocol(True, label_order=how)) for how in ("shuffled", "sorted"))
    for start in (0, 40):
        found = by_label[start : start + 40]
        assert [number % CLASSES for _, _, number in found] == sorted(cycle(40).tolist())
        for label in range(CLASSES):
            own = [image for image in found if image[2] % CLASSES == label]
            assert own == [image for image in plain[start : start + 40] if image[2] % CLASSES == label]
    unshuffled = shown(data, Protocol(True, label_order="sorted", order_seed=None))
    assert [k for _, _, k in unshuffled[:8]] == list(range(0, 40, 5))
    mixed = shown(data, Protocol(False, mixed=True, label_order="sorted"))
    assert [number % CLASSES for _, _, number in mixed] == sorted(cycle(40).tolist() * 2)
    assert {name for name, _, _ in mixed[:16]} == {"fog", "snow"}


def test_dirichlet_chunks_hold_every_image_once_and_one_block_of_each_class():
    labels = np.random.default_rng(0).integers(0, 6, 600)
    chunks = dirichlet_chunks(labels, 0.5, seed=1)
    assert len(chunks) == 6
    assert sorted(np.concatenate(chunks).tolist()) == list(range(600))
    orders = set()
    for chunk in chunks:
        runs = [label for k, label in enumerate(labels[chunk]) if k == 0 or label != labels[chunk][k - 1]]
        assert len(runs) == len(set(runs))  # a class comes but once
        orders.add(tuple(runs))
        for label in runs:
            assert (np.diff(chunk[labels[chunk] == label]) > 0).all()  # within a class as it was
    assert len(orders) > 1
    assert all(map(np.array_equal, chunks, dirichlet_chunks(labels, 0.5, seed=1)))
    assert not all(map(np.array_equal, chunks, dirichlet_chunks(labels, 0.5, seed=2)))


@pytest.mark.parametrize("delta", [0.01, 0.1, 1.0, 10.0])
def test_dirichlet_shares_have_the_moments_of_the_distribution(delta):
    """For Dirichlet(delta, ..., delta) in K parts, E[sum of p squared] is (delta + 1) / (K delta + 1)."""
    classes = 8
    labels = np.repeat(np.arange(classes), 1000)
    sums, means = [], []
    for seed in range(60):
        chunks = dirichlet_chunks(labels, delta, seed)
        shares = np.array([np.bincount(labels[chunk], minlength=classes) for chunk in chunks]) / 1000
        sums += (shares**2).sum(0).tolist()
        means.append(shares.mean(1))
    spread = np.std(sums) / len(sums) ** 0.5
    assert np.mean(sums) == pytest.approx((delta + 1) / (classes * delta + 1), abs=4 * spread + 1e-3)
    assert np.mean(means, 0) == pytest.approx(np.full(classes, 1 / classes), abs=0.06)


def test_dirichlet_streams_show_each_image_once_and_follow_the_seed():
    data = Told(cycle(60), ("fog", "snow"))

    def found(**options):
        return shown(data, Protocol(**{"reset": True, "label_order": "dirichlet", "delta": 0.1, **options}))

    first = found()
    assert sorted(first) == sorted((c, 5, k) for c in ("fog", "snow") for k in range(60))
    assert first == found()
    assert first != found(order_seed=1)
    assert first != found(delta=0.5)
    assert [k for _, _, k in first[:60]] != [k for _, _, k in first[60:]]
    assert first[60:] == found(corruptions=["snow"])
    mixed = found(reset=False, mixed=True)
    assert sorted(mixed) == sorted(first)
    assert len({name for name, _, _ in mixed[:60]}) == 2


def test_episodic_resets_before_each_batch():
    spy, _ = spied(CorruptionTTA(MadeData(cycle(9)), Reader(), Protocol(reset=False, batch_size=5, episodic=True)))
    assert spy.log == ["reset", "batch"] * 6


def test_an_episodic_method_predicts_each_batch_as_if_it_were_the_first():
    def entropies(**options):
        protocol = Protocol(False, corruptions=["fog"], batch_size=10, order_seed=None, **options)
        task = CorruptionTTA(MadeData(cycle(40)), SmallNet(), protocol)
        events = list(task.run(lambda model: Tent(model, lambda z: z.logsumexp(1), lr=0.05)))
        return [event.entropy for event in events if isinstance(event, Point)]

    data = MadeData(cycle(40))
    images = data.domain("fog", 5)[0].float() / 255
    fresh = []
    for batch in images.split(10):
        logits = Tent(SmallNet(), lambda z: z.logsumexp(1))(batch)
        fresh.append(-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean().item())
    assert entropies(episodic=True) == pytest.approx(fresh, rel=1e-4)
    assert entropies() != pytest.approx(fresh, rel=1e-4)


def test_a_window_predicts_each_image_with_those_before_it():
    data = Told(cycle(11), ("fog", "snow"))
    protocol = Protocol(False, batch_size=1, window=4, order_seed=None)
    task = CorruptionTTA(data, Reader(), protocol)
    spy, events = spied(task, PeekingSpy)
    numbers = [
        [(round(x[2, 0, 0].item() * 255), round(x[1, 0, 0].item() * 255)) for x in batch] for batch in spy.batches
    ]
    stream = [(10 * CORRUPTIONS.index(name) + 5, k) for name in ("fog", "snow") for k in range(11)]
    assert len(numbers) == len(task) == 22
    for step, batch in enumerate(numbers):
        assert sorted(batch) == sorted(stream[max(0, step - 3) : step + 1])  # across the change of domains, too
    assert [step for step, what in enumerate(spy.log) if what == "batch"] == [3, 7, 11, 15, 19]
    assert errors(events) == {"fog/5": 0, "snow/5": 0, "mean": 0}  # the logits are those of the newest image
    assert [event.n for event in events if isinstance(event, Point)] == [1] * 22


def test_a_window_starts_anew_with_a_reset():
    spy, _ = spied(
        CorruptionTTA(Told(cycle(5), ("fog", "snow")), Reader(), Protocol(True, batch_size=1, window=4)), PeekingSpy
    )
    assert [len(batch) for batch in spy.batches] == [1, 2, 3, 4, 4] * 2
    assert spy.log == ["reset", "peek", "peek", "peek", "batch", "peek"] * 2


def test_a_window_learns_once_from_each_image():
    protocol = Protocol(True, corruptions=["fog"], batch_size=1, window=4, order_seed=None)
    task = CorruptionTTA(MadeData(cycle(10)), SmallNet(), protocol)
    events = list(task.run(lambda model: Tent(model, lambda z: z.logsumexp(1), lr=0.05)))
    points = [event for event in events if isinstance(event, Point)]
    assert [point.updated for point in points] == [0, 0, 0, 4, 0, 0, 0, 4, 0, 0]
    assert [point.loss is None for point in points] == [point.updated == 0 for point in points]


def test_peek_predicts_as_the_call_and_leaves_the_method_as_it_was():
    images = MadeData(cycle(12)).domain("fog", 5)[0].float() / 255
    method = Tent(SmallNet(), lambda z: z.logsumexp(1), lr=0.05)
    before = method.peek(images)
    assert_close(method.peek(images), before, rtol=0, atol=0)
    assert_close(method(images), before)
    assert (method.peek(images) != before).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": []}, r"list of one or more corruptions, got \[\]"),
        ({"corruptions": "fog"}, "list of one or more corruptions, got 'fog'"),
        ({"corruptions": {"fog": 1}}, "list of one or more corruptions, got {"),
        ({"corruptions": ["fog", "snow", "fog"]}, "each corruption once, got fog, snow, fog"),
        ({"severity": 0}, "severity 1 to 5, or a list of these, got 0"),
        ({"severity": 6}, "severity 1 to 5, or a list of these, got 6"),
        ({"severity": 5.0}, r"severity 1 to 5, or a list of these, got 5\.0"),
        ({"severity": True}, "severity 1 to 5, or a list of these, got True"),
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
        ({"batch_size": -3}, "batch_size >= 1, got -3"),
        ({"batch_size": 2.5}, r"batch_size >= 1, got 2\.5"),
        ({"severity": []}, r"severity 1 to 5, or a list of these, got \[\]"),
        ({"severity": [3, 6]}, r"severity 1 to 5, or a list of these, got \[3, 6\]"),
        ({"severity": [3, 1, 3]}, "each severity once, got 3, 1, 3"),
        ({"severity": "5"}, "severity 1 to 5, or a list of these, got '5'"),
        ({"reset": 1}, "reset to be true or false, got 1"),
        ({"episodic": None}, "episodic to be true or false, got None"),
        ({"gradual": True, "severity": [1, 2]}, "a gradual stream is one; use reset=false"),
        ({"mixed": True}, "a mixed stream is one; use reset=false"),
        ({"reset": False, "gradual": True, "mixed": True, "severity": [1, 2]}, "choose one"),
        ({"visits": 2}, "domains recur in a continual or gradual stream"),
        ({"reset": False, "visits": 0}, "a whole number of visits >= 1"),
        ({"reset": False, "gradual": True}, "a gradual stream needs severities that ascend, got 5"),
        ({"reset": False, "gradual": True, "severity": [2, 1]}, r"severities that ascend, got \[2, 1\]"),
        ({"reset": False, "mixed": True, "order_seed": None}, "a mixed stream is a shuffled one; give an order_seed"),
        ({"label_order": "sort"}, "unknown protocol.label_order 'sort'; nearest: sorted"),
        ({"label_order": "dirichlet"}, "label_order=dirichlet needs delta > 0, got None"),
        ({"label_order": "dirichlet", "delta": 0}, "label_order=dirichlet needs delta > 0, got 0"),
        ({"label_order": "dirichlet", "delta": True}, "label_order=dirichlet needs delta > 0, got True"),
        ({"label_order": "dirichlet", "delta": float("nan")}, "label_order=dirichlet needs delta > 0, got nan"),
        ({"label_order": "dirichlet", "delta": 1.0, "order_seed": None}, "give an order_seed"),
        ({"label_order": "sorted", "delta": 1.0}, "delta belongs to label_order=dirichlet, not to sorted"),
        ({"window": 1, "batch_size": 1}, "a whole window >= 2 or null, got 1"),
        ({"window": 8}, "use batch_size=1, not 200"),
        ({"window": 8, "batch_size": 1, "episodic": True}, "a window does nothing"),
        ({"order_seed": "a"}, "order_seed to be a whole number or null, got 'a'"),
    ],
)
def test_a_wrong_protocol_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**{"reset": True, **options})


def test_a_protocol_is_checked_when_it_is_changed():
    assert replace(Protocol(reset=True), severity=3).severity == 3
    with pytest.raises(ValueError, match="severity"):
        replace(Protocol(reset=True), severity=9)


def test_data_without_severities_has_one_domain_for_each_name():
    plain = parts(Protocol(True), ["photo", "sketch"], graded=False)
    assert [(part.name, part.domains) for part in plain] == [
        (name, (Domain(name, None, name),)) for name in ("photo", "sketch")
    ]
    with pytest.raises(ValueError, match="a gradual stream needs data with severities"):
        parts(Protocol(False, severity=[1, 2], gradual=True), ["photo"], graded=False)
