"""Long-tailed streams: class sizes written out by hand, who stays, what they compose with, rows as scikit-learn's."""

import pickle

import numpy as np
import pytest
import torch
from cifar_files import as_folder, files
from made_stream import MadeData, Reader, Spy
from scipy.stats import entropy
from sklearn.metrics import balanced_accuracy_score, f1_score
from small_models import CLASSES, SmallNet

from dembench.core import EM
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose, options
from dembench.harness.sweeps import expand, read_sweep
from dembench.tasks.base import Histogram, Note, Point, Row
from dembench.tasks.common.corruptions import CORRUPTIONS
from dembench.tasks.common.generated import GeneratedCIFAR10C
from dembench.tasks.common.metrics import ClassMetrics, StreamMetrics
from dembench.tasks.common.parts import DataPart
from dembench.tasks.tta import data as tta_data
from dembench.tasks.tta.data import DigitsC, DomainsPart, LongTailedDomains
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.methods.tent import Tent
from dembench.tasks.tta.streams import Protocol
from dembench.tasks.tta.task import CorruptionTTA

SIZES = [44, 40, 50, 41, 60]  # the smallest has 40
BY_HAND = [40, 23, 14, 8, 5]  # 40 / 8^(c/4): 40, 23.8, 14.1, 8.4, 5
TAIL = {"reset": False, "rho": 8.0}
PLAIN = ["error", "nll", "ece", "entropy"]
BY_CLASS = ["f1", "recall", "bias_kl", "bias_tv"]


class Told(MadeData):
    """Images that say what they are: green their number, blue 10 times their corruption's number plus the severity."""

    def domain(self, corruption, severity):
        images, labels = super().domain(corruption, severity)
        images[:, 2, 0, 0] = 10 * CORRUPTIONS.index(corruption) + severity
        return images, labels


class Remembering(Spy):
    def __init__(self, **given):
        super().__init__(**given)
        self.logits = []

    def __call__(self, x):
        self.logits.append(super().__call__(x.clone()))
        return self.logits[-1]


class Uneven(MadeData):
    """No severities; "photo" has SIZES, and "sketch" one image of each class less."""

    severities = ()
    known = ("photo", "sketch")

    def __init__(self):
        super().__init__(labelled(SIZES), self.known)
        del self.num_images

    def size(self, corruption, severity):
        return len(self.domain(corruption, severity)[1])

    def domain(self, corruption, severity):
        sizes = SIZES if corruption == "photo" else [size - 1 for size in SIZES]
        return torch.zeros(sum(sizes), 3, 12, 12, dtype=torch.uint8), labelled(sizes)


def labelled(sizes):
    """Labels in an order of their own, so that an image's number does not tell its class."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def told(images):
    """(corruption, severity, number) of each image."""
    pixels = images[:, 1:, 0, 0].float()
    pixels = (pixels if images.dtype == torch.uint8 else pixels * 255).round().long().tolist()
    return [(CORRUPTIONS[blue // 10], blue % 10, green) for green, blue in pixels]


def spied(task, kind=Spy):
    spies = []
    events = list(task.run(lambda **given: spies.append(kind(**given)) or spies[-1]))
    return spies[0], events


def shown(protocol, data=None, **options):
    """(corruption, severity, number) of each image in the order of the stream."""
    task = CorruptionTTA(Told(labelled(SIZES)) if data is None else data, Reader(), protocol, **options)
    return told(torch.cat(spied(task)[0].batches))


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def numbers_of(found, name, severity=5):
    return {number for corruption, s, number in found if (corruption, s) == (name, severity)}


@pytest.mark.parametrize("reverse", [False, True])
def test_class_sizes_are_those_of_the_formula_in_every_domain(reverse):
    labels, counts = labelled(SIZES), BY_HAND[::-1] if reverse else BY_HAND
    task = CorruptionTTA(Told(labels), Reader(), Protocol(**TAIL, reverse=reverse, batch_size=20))
    spy, events = spied(task)
    found = told(torch.cat(spy.batches))
    assert len(found) == len(set(found)) == 270
    for name in ("fog", "snow", "contrast"):
        chosen = labels[sorted(numbers_of(found, name))]
        assert torch.bincount(chosen, minlength=CLASSES).tolist() == counts
    assert [h.label for h in of(Histogram, events)] == [tuple(counts)] * 3
    assert [point.n for point in of(Point, events)] == [20, 20, 20, 20, 10] * 3
    assert len(task) == 15
    assert task._smallest() == 10  # of this stream, not of the 235 images that there are
    assert {row.n for row in of(Row, events) if row.slice != "mean"} == {90}


def test_a_ratio_of_one_is_a_balanced_stream():
    data = Told(labelled(SIZES))
    _, events = spied(CorruptionTTA(data, SmallNet(), Protocol(reset=True, rho=1)))
    assert [h.label for h in of(Histogram, events)] == [(40,) * CLASSES] * 3
    values = {(row.slice, row.metric): row.value for row in of(Row, events)}
    for name in ("fog/5", "snow/5", "contrast/5", "mean"):
        assert values[name, "recall"] == pytest.approx(1 - values[name, "error"])


def test_images_stay_with_their_labels():
    labels = labelled(SIZES)
    data = LongTailedDomains(Told(labels), 8.0, False, 0)
    images, own = data.domain("fog", 5)
    numbers = [number for _, _, number in told(images)]
    assert own.tolist() == labels[numbers].tolist() == data.labels("fog", 5).tolist()
    assert numbers == sorted(set(numbers))
    assert data.num_images == data.size("fog", 5) == len(numbers) == 90
    assert torch.equal(images, data.data.domain("fog", 5)[0][numbers])


def test_who_stays_belongs_to_corruption_severity_and_seed_and_to_nothing_else():
    def stay(corruptions, severity=5, seed=0, **options):
        protocol = Protocol(**{**TAIL, **options}, corruptions=corruptions, severity=severity, order_seed=seed)
        return numbers_of(shown(protocol, Told(labelled(SIZES), CORRUPTIONS)), "snow", severity)

    alone = stay(["snow"])
    assert alone == stay(["fog", "snow"]) == stay(None) == stay(["snow"], batch_size=7, reset=True)
    assert alone == stay(["snow"], label_order="sorted") == stay(["snow"], label_order="dirichlet", delta=0.1)
    fog = numbers_of(shown(Protocol(**TAIL), Told(labelled(SIZES))), "fog")
    others = [fog, stay(["snow"], 4), stay(["snow"], seed=1), stay(["snow"], seed=-1)]
    assert len({frozenset(found) for found in (alone, *others)}) == 5
    assert alone < stay(["snow"], rho=4.0) < stay(["snow"], rho=1.0)


def test_who_stays_is_no_matter_of_the_place():
    """Over many seeds each image of a class stays equally often: within four standard deviations of its share."""
    labels = labelled(SIZES)
    data, seeds = Told(labels), 300
    times = torch.zeros(len(labels))
    for seed in range(seeds):
        times[LongTailedDomains(data, 8.0, False, seed)._keep("fog", 5)[0]] += 1
    for label, (count, size) in enumerate(zip(BY_HAND, SIZES, strict=True)):
        share = count / size
        deviation = (share * (1 - share) / seeds) ** 0.5
        assert (times[labels == label] / seeds - share).abs().max() < 4 * deviation + 1e-6


@pytest.mark.parametrize(("rho", "rest", "search"), [(4.0, [40, 28, 20, 14, 10], [10, 7, 5, 3, 2])])
def test_parts_for_the_search_and_the_rest_share_no_image(rho, rest, search):
    """Of 50 images of each class, 10 are the search's; each part has a tail of its own."""
    labels, seen = labelled([50] * CLASSES), {}
    for use, counts in (("rest", rest), ("search", search)):
        task = CorruptionTTA(Told(labels), Reader(), Protocol(reset=False, rho=rho), part=DataPart(use))
        spy, events = spied(task)
        seen[use] = {number for _, _, number in told(torch.cat(spy.batches))}
        assert [h.label for h in of(Histogram, events)] == [tuple(counts)] * 3
        assert [note.key for note in of(Note, events)][:2] == ["part", "long_tail"]
        assert len(task) == 3
    assert not seen["rest"] & seen["search"]


def test_labels_come_sorted_or_in_runs_of_those_that_stay():
    labels, plain = labelled(SIZES), shown(Protocol(**TAIL))
    for start in (0, 90, 180):
        by_label = shown(Protocol(**TAIL, label_order="sorted"))[start : start + 90]
        assert sorted(by_label) == sorted(plain[start : start + 90])
        expected = [label for label, count in enumerate(BY_HAND) for _ in range(count)]
        assert [int(labels[number]) for _, _, number in by_label] == expected
    runs = shown(Protocol(**TAIL, label_order="dirichlet", delta=0.1))
    assert sorted(runs) == sorted(plain)
    changes = [(labels[[number for *_, number in found[:90]]].diff() != 0).sum() for found in (runs, plain)]
    assert changes[0] < 25 < changes[1]  # in a chunk each class comes once: at most 24 changes in 5 chunks


def test_a_mixed_stream_has_the_images_of_its_domains():
    protocol = Protocol(**TAIL, severity=[5, 2], mixed=True, batch_size=100)
    found = shown(protocol)
    assert sorted(found) == sorted(shown(Protocol(**TAIL, severity=[5, 2])))
    assert len({name for name, _, _ in found[:30]}) == 3
    task = CorruptionTTA(Told(labelled(SIZES)), Reader(), protocol)
    _, events = spied(task)
    assert len(task) == len(of(Point, events)) == 6  # 540 images
    assert [h.label for h in of(Histogram, events)] == [tuple(BY_HAND)] * 6


def test_a_gradual_stream_shows_the_same_images_up_and_down():
    found = shown(Protocol(**TAIL, severity=[1, 2, 3], gradual=True, corruptions=["fog"], batch_size=90))
    parts = [found[start : start + 90] for start in range(0, 450, 90)]
    assert [part[0][1] for part in parts] == [1, 2, 3, 2, 1]
    assert sorted(parts[0]) == sorted(parts[4])
    assert numbers_of(parts[0], "fog", 1) != numbers_of(parts[1], "fog", 2)


def test_a_window_slides_over_those_that_stay():
    class Peeking(Spy):
        peek = Spy.__call__

    task = CorruptionTTA(Told(labelled(SIZES)), Reader(), Protocol(**TAIL, batch_size=1, window=8, corruptions=["fog"]))
    spy, events = spied(task, Peeking)
    assert len(task) == len(of(Point, events)) == len(spy.log) == 90


def test_domains_without_severities_have_each_a_head_of_their_own():
    task = CorruptionTTA(Uneven(), Reader(), Protocol(**TAIL))
    _, events = spied(task)
    # 39 / 8^(c/4): 39, 23.2, 13.8, 8.2, 4.9
    assert [(h.slice, h.label) for h in of(Histogram, events)] == [
        ("photo", (40, 23, 14, 8, 5)),
        ("sketch", (39, 23, 13, 8, 4)),
    ]
    (text,) = [note.text for note in of(Note, events) if note.key == "long_tail"]
    assert text.startswith(
        "label-shifted stream: in each domain 87 to 90 of 230 to 235 images, 39 to 40 of the first class to 4 to 5 of "
        "the last (rho=8)"
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_rows_are_scikit_learns_of_what_was_predicted(mixed):
    labels, names = labelled(SIZES).numpy(), ("fog", "snow", "contrast")
    protocol = Protocol(**TAIL, batch_size=32, mixed=mixed)
    spy, events = spied(CorruptionTTA(Told(labels), SmallNet(), protocol), Remembering)
    found = told(torch.cat(spy.batches))
    predicted = torch.cat(spy.logits).argmax(1).numpy()
    rows = of(Row, events)
    values = {(row.slice, row.metric): row.value for row in rows}
    expected = {}
    for name in names:
        own = [k for k, (corruption, _, _) in enumerate(found) if corruption == name]
        true, said = labels[[found[k][2] for k in own]], predicted[own]
        q, p = (np.bincount(of_class, minlength=CLASSES) / len(own) for of_class in (said, true))
        expected[name] = {
            "error": (true != said).mean(),
            "f1": f1_score(true, said, labels=range(CLASSES), average="macro", zero_division=0),
            "recall": balanced_accuracy_score(true, said),
            "bias_kl": entropy(q, p),
            "bias_tv": np.abs(q - p).sum() / 2,
        }
        assert {metric: values[f"{name}/5", metric] for metric in expected[name]} == pytest.approx(expected[name])
    for metric in expected["fog"]:
        mean = np.mean([expected[name][metric] for name in names])
        assert values["mean", metric] == pytest.approx(mean)
    assert len({round(expected[name]["f1"], 6) for name in names}) == 3  # the domains can be told apart
    assert [(row.metric, row.unit) for row in rows if row.slice == "mean"][4:] == [
        ("f1", "fraction"),
        ("recall", "fraction"),
        ("bias_kl", "nats"),
        ("bias_tv", "fraction"),
    ]


def test_without_a_ratio_rows_and_notes_are_as_they_were():
    def events(**options):
        task = CorruptionTTA(Told(labelled(SIZES)), SmallNet(), Protocol(reset=False, batch_size=30, **options))
        return list(task.run(lambda model: Tent(model, EM(), lr=1e-2)))

    plain, tail = events(), events(rho=8.0)
    assert [row.metric for row in of(Row, plain)] == PLAIN * 3 + PLAIN
    assert [row.metric for row in of(Row, tail)] == (PLAIN + BY_CLASS) * 3 + PLAIN + BY_CLASS
    assert "long_tail" not in [note.key for note in of(Note, plain)]
    assert {row.n for row in of(Row, plain)} == {235, 705}


def test_the_four_plain_numbers_are_the_same_in_both_metrics():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(90, 7, generator=generator), torch.randint(7, (90,), generator=generator)
    plain, more = StreamMetrics(7), ClassMetrics(7)
    for part in range(0, 90, 40):
        for metrics in (plain, more):
            metrics.update(logits[part : part + 40], labels[part : part + 40])
    assert more.rows("x")[:4] == plain.rows("x")
    assert more.rows("x") == more.rows("x")  # asking changes nothing
    more.update(logits[:10], labels[:10])
    assert more.rows("x")[4].value == pytest.approx(
        f1_score([*labels, *labels[:10]], [*logits.argmax(1), *logits[:10].argmax(1)], average="macro")
    )


@pytest.mark.gpu
def test_class_metrics_wait_for_cuda_once_per_slice():
    logits, labels = torch.randn(50, 10).cuda(), torch.randint(10, (50,)).cuda()
    metrics = ClassMetrics(10, "cuda")
    metrics.update(logits, labels)  # the first call may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.update(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    cpu = ClassMetrics(10)
    for _ in range(2):
        cpu.update(logits.cpu(), labels.cpu())
    assert [row.value for row in metrics.rows("x")] == pytest.approx([row.value for row in cpu.rows("x")], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.5}, r"expected rho >= 1 or null, got 0\.5"),
        ({"rho": -3}, "expected rho >= 1 or null, got -3"),
        ({"rho": float("inf")}, "expected rho >= 1 or null, got inf"),
        ({"rho": float("nan")}, "expected rho >= 1 or null, got nan"),
        ({"rho": True}, "expected rho >= 1 or null, got True"),
        ({"rho": "10"}, "expected rho >= 1 or null, got '10'"),
        ({"rho": 10.0, "order_seed": None}, "rho draws the images that stay; give an order_seed"),
        ({"reverse": True}, "reverse belongs to a long tail; give rho, too"),
        ({"rho": 10.0, "reverse": 1}, "expected reverse to be true or false, got 1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**{"reset": False, **options})


def test_an_empty_tail_is_refused_before_the_first_image():
    message = r"rho=60 leaves 1 of 5 classes empty in fog/5, whose head has 40 images.*rho of at most 40"
    task = CorruptionTTA(Told(labelled(SIZES)), Reader(), Protocol(reset=False, rho=60.0))
    with pytest.raises(ValueError, match=message):
        task.data.check()
    with pytest.raises(ValueError, match=message):
        next(iter(task.run(Source)))
    CorruptionTTA(Told(labelled(SIZES)), Reader(), Protocol(reset=False, rho=40.0)).data.check()
    missing = CorruptionTTA(Told(labelled([9, 9, 9, 9])), Reader(), Protocol(reset=False, rho=1.0))
    with pytest.raises(ValueError, match="rho=1 needs images of every class, and fog/5 has a class without"):
        missing.data.check()


def test_every_domain_of_the_stream_is_checked():
    class LastIsSmall(Told):
        def domain(self, corruption, severity):
            images, labels = super().domain(corruption, severity)
            few = labels != 2 if corruption == "contrast" else labels >= 0
            return images[few], labels[few]

    with pytest.raises(ValueError, match="contrast/5 has a class without"):
        CorruptionTTA(LastIsSmall(labelled(SIZES)), Reader(), Protocol(**TAIL)).data.check()


def test_digits_are_counted_without_making_images(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("images were made")

    monkeypatch.setattr(tta_data, "corrupt", refuse)
    whole, part = DigitsC(), DomainsPart(DigitsC(), DataPart("rest"))
    for data, total in ((whole, 896), (part, 717)):
        assert len(data.labels("fog", 5)) == total
        tail = LongTailedDomains(data, 10.0, False, 0)
        tail.require([(name, severity) for name in CORRUPTIONS for severity in (3, 5)])
        tail.check()
        assert tail.fingerprint == data.fingerprint
    monkeypatch.undo()
    for data in (whole, part):
        assert torch.equal(data.labels("fog", 5), data.domain("fog", 5)[1])


def test_made_cifar_is_counted_without_making_images(tmp_path, monkeypatch):
    data = GeneratedCIFAR10C(as_folder(tmp_path / "tree", files()), cache=tmp_path / "cache")
    tail = LongTailedDomains(data, 2.0, False, 0)
    tail.check()
    assert not list((tmp_path / "cache").rglob("*.npy"))
    images, labels = tail.domain("fog", 5)
    assert len(images) == len(labels) == tail.num_images
    # 4 / 2^(c/9): 4, 3.7, 3.4, 3.2, 2.9, 2.7, 2.5, 2.3, 2.2, 2
    assert torch.bincount(labels).tolist() == [4, 3, 3, 3, 2, 2, 2, 2, 2, 2]
    assert torch.equal(data.labels("fog", 5), data.domain("fog", 5)[1])


def test_data_that_gives_no_labels_is_asked_once_for_its_images():
    data = Told(labelled(SIZES))
    tail = LongTailedDomains(data, 8.0, False, 0)
    assert [tail.size("fog", 5) for _ in range(3)] == [90] * 3
    assert data.asked == [("fog", 5)]


def test_what_is_not_changed_is_the_datas_own_and_survives_a_pickle():
    tail = LongTailedDomains(DigitsC(num_images=100), 5.0, True, 3)
    copy = pickle.loads(pickle.dumps(tail))
    assert (copy.name, copy.num_classes, copy.corruptions) == ("digits-c", 10, CORRUPTIONS)
    assert torch.equal(copy.domain("fog", 5)[0], tail.domain("fog", 5)[0])
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = copy.nothing_of_that_name


WORDS = {"method": "tent", "data.num_images": 300, "protocol": "long_tail", "protocol.corruptions": ["fog", "snow"]}


@pytest.fixture
def _torch_as_it_was():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_run_by_its_configuration(tmp_path):
    ready = experiment.prepare(compose({**WORDS, "protocol.batch_size": 25, "out": str(tmp_path)}))
    result = experiment.run(ready).result
    # 30 / 10^(c/9): 30, 23.2, 18.0, 13.9, 10.8, 8.3, 6.5, 5.0, 3.9, 3
    counts = [30, 23, 17, 13, 10, 8, 6, 5, 3, 3]
    assert {name: h["label"] for name, h in result["histograms"].items()} == dict.fromkeys(("fog/5", "snow/5"), counts)
    rows = [(row["slice"], row["metric"], row["n"]) for row in result["rows"]]
    n = sum(counts)
    assert rows == [(s, m, k) for s, k in (("fog/5", n), ("snow/5", n), ("mean", 2 * n)) for m in PLAIN + BY_CLASS]
    assert (result["protocol"], result["data"]) == ("long_tail", "digits-c")
    (note,) = [note["text"] for note in result["notes"] if note["key"] == "long_tail"]
    assert f"{n} of 300 images, 30 of the first class to 3 of the last (rho=10)" in note


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_tail_that_is_too_long_is_one_line_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"rho=1000 leaves 5 of 10 classes empty in fog/5, whose head has 30 images"):
        experiment.prepare(compose({**WORDS, "protocol.rho": 1000, "out": str(tmp_path / "runs")}))
    assert not (tmp_path / "runs").exists()


def test_other_protocols_are_composed_as_before():
    """Run ids are hashes of these: a key more, and finished runs would be run again."""
    protocols = {name: compose({"protocol": name, "seed": 4}).protocol for name in options("protocol", "tta")}
    assert dict(protocols["continual"]) == {
        "_target_": "dembench.tasks.tta.task.Protocol", "reset": False, "severity": [5],
        "corruptions": None, "batch_size": 200,
        "order_seed": 4, "episodic": False, "label_order": "shuffled", "delta": None, "window": None,
    }  # fmt: skip
    assert {name for name, protocol in protocols.items() if {"rho", "reverse"} & set(protocol)} == {"long_tail"}
    tail = dict(protocols["long_tail"])
    assert (tail.pop("rho"), tail.pop("reverse")) == (10.0, False)
    assert tail == dict(protocols["continual"])


def test_the_study_composes():
    words = expand(read_sweep("study=tta_long_tail"))
    assert {(w["method"], w["loss"]) for w in words} == {
        ("source", "em"), ("norm", "em"), ("tent", "em"), ("tent", "adadem"),
    }  # fmt: skip
    assert {w["protocol.rho"] for w in words} == {1.0, 10.0}
    assert {w["seed"] for w in words} == {0, 1, 2}
    for word in words[:: len(words) // 6]:
        cfg = compose(word)
        assert (cfg.choices.protocol, cfg.protocol.batch_size, cfg.protocol.severity) == ("long_tail", 50, [5])
        assert cfg.protocol.rho == word["protocol.rho"]
