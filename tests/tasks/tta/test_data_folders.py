"""ImageNet-C, ImageNet-A and other class folders: order of the classes, subsets of the 1000, domains, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from dembench.tasks.base import Note, Point, Row
from dembench.tasks.common.corruptions import CORRUPTIONS
from dembench.tasks.common.digits_nets import Normalized, keep_classes
from dembench.tasks.common.images import Preprocess
from dembench.tasks.common.wnids import imagenet_wnids
from dembench.tasks.tta.folders import ImageFolders, ImageNetC
from dembench.tasks.tta.methods.source import Source
from dembench.tasks.tta.models import timm_model, torchvision_model
from dembench.tasks.tta.streams import Protocol
from dembench.tasks.tta.task import CorruptionTTA

WNIDS = tuple(f"n{10 * k:08d}" for k in range(1000))  # made, in the form and order of ImageNet's
SOME = (3, 500, 998)
SMALL = Preprocess(8, 8)


def tree(root, folders, per_class=2, size=(8, 8), value=lambda folder, k: (folder, k, 0)):
    """Images whose red is the number of their folder and green their own."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for k in range(per_class):
            Image.new("RGB", size, value(number, k)).save(root / folder / f"val_{k:04d}.png")
    return root


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "wnids.txt"
    path.write_text("\n".join(f"{wnid} a name" for wnid in reversed(WNIDS)))
    return path


class Thousand(nn.Module):
    """1000 logits that are large at the red value's class of ``SOME``."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1000, bias=False)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[7, :] = 99.0  # a class that is not among those kept would win
            for red, k in enumerate(SOME):
                self.head.weight[k] = torch.tensor([-2.0 + 2 * red, -((1.0 - red) ** 2) + 1, 0])

    def forward(self, x):
        red = x[:, 0, 0, 0] * 255 - 1
        return self.head(torch.stack([red, torch.ones_like(red), torch.zeros_like(red)], 1))


def normalized(net, num_classes=1000, preprocess=SMALL):
    return Normalized((0,) * 3, (1,) * 3, net, num_classes=num_classes, weights_id="made", preprocess=preprocess)


def run(data, model, **options):
    return list(CorruptionTTA(data, model, Protocol(**{"reset": True, **options})).run(Source))


# --- classes


def test_timm_knows_the_wnids_in_order():
    found = imagenet_wnids(None)
    assert (len(found), found[0], found[999], found[207]) == (1000, "n01440764", "n15075141", "n02099601")


def test_wnids_are_read_from_a_file_or_a_folder(tmp_path, classes):
    assert imagenet_wnids(classes) == WNIDS
    for wnid in WNIDS:
        (tmp_path / "val" / wnid).mkdir(parents=True)
    assert imagenet_wnids(tmp_path / "val") == WNIDS
    (tmp_path / "val" / WNIDS[0]).rmdir()
    with pytest.raises(ValueError, match="expected 1000 wnids such as n01440764, got 999 names"):
        imagenet_wnids(tmp_path / "val")
    with pytest.raises(FileNotFoundError, match="no file"):
        imagenet_wnids(tmp_path / "absent")


def test_without_timm_the_classes_have_to_be_given(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"give data.classes=PATH .*pip install 'dembench\[timm\]'"):
        imagenet_wnids(None)


def test_of_a_thousand_classes_those_present_are_kept(tmp_path, classes):
    root = tree(tmp_path / "imagenet-a", [WNIDS[k] for k in SOME])
    data = ImageFolders(root, name="imagenet-a", labels="wnid", classes=classes)
    data.check()
    assert (data.class_index, data.num_classes, data.corruptions) == (SOME, 3, ("imagenet-a",))
    events = run(data, normalized(Thousand()))
    rows = {(event.slice, event.metric): event for event in events if isinstance(event, Row)}
    assert rows["imagenet-a", "error"].value == 0  # with class 7 it would be 1
    assert rows["imagenet-a", "error"].n == 6
    notes = {event.key: event.text for event in events if isinstance(event, Note)}
    assert notes["classes"] == "of the model's 1000 classes, the 3 of imagenet-a are kept"
    assert "no severities" in notes["severity"]
    assert run(data, normalized(Thousand()))  # the model that was given has still 1000


def test_folders_named_by_number_are_ordered_as_numbers(tmp_path):
    root = tree(tmp_path / "v2", ["3", "500", "998", "10"])
    data = ImageFolders(root, name="imagenet-v2", labels="index")
    assert data.class_index == (3, 10, 500, 998)
    whole = ImageFolders(tree(tmp_path / "all", list(map(str, range(1000))), 1), name="imagenet-v2", labels="index")
    assert (whole.class_index, whole.num_classes) == (None, 1000)
    whole.use(SMALL)
    images, labels = whole.domain("imagenet-v2", None)
    assert labels.tolist() == list(range(1000))
    assert images.paths[2].endswith("/2/val_0000.png")
    with pytest.raises(ValueError, match="expected folders named 0 to 999, got n00000000"):
        ImageFolders(tree(tmp_path / "wnids", WNIDS[:2]), name="imagenet-v2", labels="index").check()


def test_classes_of_plain_folders_are_the_folders(tmp_path):
    data = ImageFolders(tree(tmp_path / "pets", ["dog", "cat", "ant"]))
    data.use(SMALL)
    assert (data.class_names, data.class_index) == (("ant", "cat", "dog"), None)
    images, labels = data.domain("image-folder", None)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.tensor()[:, 0, 0, 0].tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="the model has 5 classes, image-folder has 3"):
        CorruptionTTA(data, normalized(nn.Identity(), 5), Protocol(reset=True))
    with pytest.raises(ValueError, match="this model has no transform for photographs"):
        CorruptionTTA(data, normalized(nn.Identity(), 3, None), Protocol(reset=True))


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision_model("resnet18", None),
        lambda: torchvision_model("squeezenet1_1", None),
        lambda: timm_model("vit_tiny_patch16_224", None),
    ],
)
def test_a_cut_classifier_gives_the_logits_of_its_classes(build):
    model = build()
    index = [5, 900, 77]
    cut = keep_classes(model, index)
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert_close(cut(x), model(x)[:, index], rtol=1e-4, atol=1e-4)
    assert (cut.num_classes, model.num_classes) == (3, 1000)


def test_a_model_without_a_plain_classifier_is_refused():
    class Scaled(Thousand):
        def forward(self, x):
            return super().forward(x).softmax(1)

    with pytest.raises(ValueError, match="Scaled: cannot keep 3 of its 1000 classes"):
        keep_classes(normalized(Scaled()), SOME)


# --- domains


def test_several_domains_are_a_stream(tmp_path):
    for name, shift in (("photo", 0), ("sketch", 10)):
        tree(tmp_path / name, ["ant", "cat", "dog"], value=lambda folder, k, shift=shift: (folder, k, shift))
    data = ImageFolders(tmp_path, ["sketch", "photo"])

    class Red(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), 3).float()

    events = run(data, normalized(Red(), 3), batch_size=4)
    assert [e.value for e in events if isinstance(e, Row) and e.metric == "error"] == [0, 0, 0]
    assert [e.slice for e in events if isinstance(e, Point)] == ["sketch"] * 2 + ["photo"] * 2
    mixed = run(data, normalized(Red(), 3), reset=False, mixed=True, batch_size=5)
    assert [e.n for e in mixed if isinstance(e, Point)] == [5, 5, 2]
    with pytest.raises(ValueError, match="unknown corruption 'foto'; nearest: photo"):
        run(data, normalized(Red(), 3), corruptions=["foto"])
    (tmp_path / "photo" / "emu").mkdir()
    with pytest.raises(ValueError, match="photo has other class folders than the first domain: emu"):
        run(ImageFolders(tmp_path, ["sketch", "photo"]), normalized(Red(), 3))


def corrupted(root, places, wnids=WNIDS[:3], size=(8, 8)):
    """ImageNet-C with a few corruptions; blue is 10 times the corruption's number plus the severity."""
    for place, severity in places:
        blue = 10 * CORRUPTIONS.index(place.split("/")[-1]) + severity
        tree(root / place / str(severity), wnids, 4, size, lambda folder, k, blue=blue: (folder, k, blue))
    return root


def test_imagenet_c_is_found_flat_or_in_its_archives_folders(tmp_path, classes):
    root = corrupted(tmp_path / "c", [("fog", 5), ("noise/shot_noise", 5), ("noise/shot_noise", 3)])
    data = ImageNetC(root, classes=classes)
    data.use(SMALL)
    for name, severity in (("fog", 5), ("shot_noise", 5), ("shot_noise", 3)):
        images, labels = data.domain(name, severity)
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        blue = 10 * CORRUPTIONS.index(name) + severity
        assert images.tensor()[:, :, 0, 0].tolist() == [[c, k, blue] for c in range(3) for k in range(4)]
    data.require([("fog", 5)])
    for missing in ([("fog", 5), ("fog", 4)], [("snow", 5)]):
        with pytest.raises(FileNotFoundError, match="imagenet-c: no folder .*zenodo.org/records/2235448"):
            data.require(missing)
    with pytest.raises(ValueError, match="unknown corruption 'frog'; nearest: fog"):
        data.require([("frog", 5)])


def test_imagenet_c_can_be_cut_to_a_balanced_or_to_a_listed_subset(tmp_path, classes):
    root = corrupted(tmp_path / "c", [("fog", 5)])
    data = ImageNetC(root, 6, classes=classes)
    data.use(SMALL)
    assert (data.size("fog", 5), np.bincount(data.domain("fog", 5)[1].numpy()).tolist()) == (6, [2, 2, 2])
    listed = tmp_path / "ids.txt"
    listed.write_text(f"{WNIDS[2]}/val_0001.JPEG\n{WNIDS[0]}/val_0003.JPEG\n")
    data = ImageNetC(root, subset=listed, classes=classes)
    data.use(SMALL)
    images, labels = data.domain("fog", 5)
    assert (images.tensor()[:, 1, 0, 0].tolist(), labels.tolist()) == ([3, 1], [0, 2])
    listed.write_text(f"{WNIDS[2]}/val_0001.JPEG\n{WNIDS[2]}/val_0009.JPEG\n")
    with pytest.raises(ValueError, match="lists 2 images, 1 of them are there"):
        ImageNetC(root, subset=listed, classes=classes).size("fog", 5)
    with pytest.raises(FileNotFoundError, match="<wnid>/<image> lines: no file .*gone.txt"):
        ImageNetC(root, subset=tmp_path / "gone.txt", classes=classes).size("fog", 5)


def test_imagenet_c_is_resized_only_for_other_input_sizes(tmp_path, classes):
    root = corrupted(tmp_path / "c", [("fog", 5)], size=(224, 224))
    data = ImageNetC(root, classes=classes)
    data.use(Preprocess(256, 224, "bicubic"))
    assert data.preprocess == Preprocess(224, 224, "bicubic")
    assert "the shorter side to 224 (bicubic), centre crop 224" in data.notes[1].text
    data.use(Preprocess(384, 384, "bicubic"))
    assert data.preprocess == Preprocess(384, 384, "bicubic")
    assert "the shorter side to 384 (bicubic), centre crop 384" in data.notes[1].text


def test_clean_images_are_those_of_the_datas_classes(tmp_path, classes):
    source = tree(tmp_path / "imagenet" / "val", WNIDS[:5], 3, (30, 20)).parent
    data = ImageNetC(corrupted(tmp_path / "c", [("fog", 5)]), classes=classes, source=source)
    data.use(Preprocess(16, 8))
    images, note = data.clean(7, 0)
    assert images.shape == (7, 3, 8, 8)
    assert set(images[:, 0, 0, 0].tolist()) <= {0, 1, 2}
    assert (note.key, "7 clean images" in note.text) == ("clean", True)
    assert torch.equal(data.clean(7, 0)[0], images)
    assert not torch.equal(data.clean(7, 1)[0], images)
    with pytest.raises(ValueError, match="clean images are needed; give data.source=DIR"):
        ImageNetC(tmp_path / "c", classes=classes).clean(7, 0)


def test_fingerprints_follow_names_and_bytes_of_what_is_asked_for(tmp_path, classes):
    places = [("fog", 5), ("snow", 5)]
    roots = [corrupted(tmp_path / name, places) for name in ("one", "two")]

    def fingerprint(root, domains=(("fog", 5), ("snow", 5)), **options):
        data = ImageNetC(root, classes=classes, **options)
        data.require(domains)
        return data.fingerprint

    first = fingerprint(roots[0])
    assert first == fingerprint(roots[1])
    assert first != fingerprint(roots[0], num_images=3)
    fog = fingerprint(roots[0], [("fog", 5)])
    path = roots[1] / "snow" / "5" / WNIDS[1] / "val_0002.png"
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1  # one bit, the same size
    path.write_bytes(changed)
    assert first != fingerprint(roots[1])
    assert fog == fingerprint(roots[1], [("fog", 5)])
    clean = [tree(tmp_path / name, WNIDS[:3], value=lambda c, k, n=n: (c, k, n)) for n, name in enumerate(("a", "b"))]
    assert len({fingerprint(roots[0]), *(fingerprint(roots[0], source=source) for source in clean)}) == 3


def test_missing_folders_say_where_to_get_them(tmp_path):
    for name, where in (("imagenet-a", "hendrycks/imagenet-a.tar"), ("imagenet-v2", "vaishaal/ImageNetV2")):
        with pytest.raises(FileNotFoundError, match=f"{name}: no folder .*absent; expected <class>/<image> .*{where}"):
            ImageFolders(tmp_path / "absent", name=name, labels="wnid").check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no class folders in .*empty"):
        ImageFolders(tmp_path / "empty").check()
    with pytest.raises(ValueError, match="expected wnids such as n01440764, got cat"):
        ImageFolders(tree(tmp_path / "pets", ["cat"]), name="imagenet-r", labels="wnid").check()
    for domains in ("photo", []):
        with pytest.raises(ValueError, match="expected a list of domains or null"):
            ImageFolders(tmp_path, domains)
    with pytest.raises(ValueError, match="each domain once, got a, a"):
        ImageFolders(tmp_path, ["a", "a"])
