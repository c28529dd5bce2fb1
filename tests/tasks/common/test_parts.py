"""Parts of data: sizes, the same share of each class, and that search and rest share no sample in any task."""

import pytest
import torch

from dembench.harness.compose import compose
from dembench.tasks.common.parts import DataPart
from dembench.tasks.prompt.data import Digits as PromptDigits
from dembench.tasks.prompt.data import SetsPart
from dembench.tasks.semi.data import SearchPart, SemiData
from dembench.tasks.semi.sources import Digits as SemiDigits
from dembench.tasks.tta.data import DigitsC, DomainsPart


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 7])
def test_search_and_rest_divide_the_samples_class_by_class(share, seed):
    labels = torch.randint(0, 7, (503,), generator=torch.Generator().manual_seed(seed))
    search, rest = (DataPart(use, share, seed).choose(labels) for use in ("search", "rest"))
    assert torch.equal(torch.cat([search, rest]).sort().values, torch.arange(503))
    assert len(search) == round(share * 503) == DataPart("search", share, seed).size(503)
    assert torch.equal(search, search.sort().values)
    assert torch.equal(rest, rest.sort().values)
    expected = share * torch.bincount(labels, minlength=7)
    assert (torch.bincount(labels[search], minlength=7) - expected).abs().max() <= 1 + 1e-9
    again = DataPart("search", share, seed).choose(labels)
    other = DataPart("search", share, seed + 1).choose(labels)
    assert torch.equal(search, again)
    assert not torch.equal(search, other)


def test_without_classes_it_is_a_plain_draw():
    chosen = DataPart("search", 0.25, 3).choose(torch.zeros(40, dtype=torch.int64))
    assert len(chosen) == len(chosen.unique()) == 10
    assert not torch.equal(chosen, torch.arange(0, 40, 4))


@pytest.mark.parametrize("seed", range(6))
def test_a_block_is_consecutive_round_the_end(seed):
    search, rest = (DataPart(use, 0.2, seed).block(31).tolist() for use in ("search", "rest"))
    assert sorted(search + rest) == list(range(31))
    assert len(search) == 6
    assert sum((k + 1) % 31 not in search for k in search) == 1  # one end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", 0.0), "search_share: expected a number between 0 and 1, got 0.0"),
        (("rest", 1.0), "search_share: expected a number between 0 and 1, got 1.0"),
        (("search", 0.2, -1), "search_seed: expected a whole number >= 0, got -1"),
        (("test", 0.2), "part: expected search or rest, got 'test'"),
    ],
)
def test_wrong_parts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataPart(*arguments)


def test_a_part_without_samples_is_refused():
    with pytest.raises(ValueError, match="search_share=0.2 of 2 samples leaves one part empty"):
        DataPart("search", 0.2).choose(torch.tensor([0, 1]))


class Numbered(DigitsC):
    """Digits whose images are replaced by their positions, so that it can be seen which ones are shown."""

    def domain(self, corruption, severity):
        _, labels = super().domain(corruption, severity)
        return torch.arange(len(labels)), labels


def test_tta_shows_other_images_to_the_search_in_every_domain():
    data = Numbered(num_images=200)
    seen = set()
    for corruption in ("fog", "contrast"):
        shown = {}
        for use in ("search", "rest"):
            part = DomainsPart(data, DataPart(use))
            index, labels = part.domain(corruption, 5)
            assert torch.equal(labels, data.domain(corruption, 5)[1][index])
            assert part.num_images == part.size(corruption, 5) == len(index)
            shown[use] = index.tolist()
        assert not set(shown["search"]) & set(shown["rest"])
        assert len(shown["search"]) == 40
        seen.add(tuple(shown["search"]))
    assert len(seen) == 1  # an image of the search is in no domain of the rest


def test_prompt_sets_keep_images_and_views_of_their_own():
    data = PromptDigits(num_images=60, corruptions=["noise"])
    for whole, search, rest in zip(
        data.sets(), *(SetsPart(data, DataPart(use)).sets() for use in ("search", "rest")), strict=True
    ):
        numbers = [set(images.numbers.tolist()) for images in (whole, search, rest)]
        assert numbers[1] | numbers[2] == numbers[0]
        assert not numbers[1] & numbers[2]
        assert (len(search), len(rest)) == (12, 48)
        for part in (search, rest):
            for k in (0, len(part) - 1):
                position = whole.numbers.tolist().index(part.number(k))
                assert torch.equal(part.image(k), whole.image(position))
                assert part.labels[k] == whole.labels[position]
        assert len({whole.fingerprint, search.fingerprint, rest.fingerprint}) == 3  # features are kept by it


def test_semi_searches_on_validation_images_that_neither_train_nor_test():
    data = SemiData(SemiDigits(), labels_per_class=2, validation_per_class=5)
    part = SearchPart(data, DataPart("search"))
    part.check()
    train = data.images.train.images
    assert torch.equal(part.test.images, train[data.split.validation])
    used = torch.cat([data.split.labelled, data.split.unlabelled])
    assert not set(data.split.validation.tolist()) & set(used.tolist())
    tested = {image.numpy().tobytes() for image in data.test.images}
    assert not tested & {image.numpy().tobytes() for image in part.test.images}
    assert not len(part.validation.labels)
    assert torch.equal(part.unlabelled, data.unlabelled)


def test_semi_without_validation_images_says_what_to_do():
    part = SearchPart(SemiData(SemiDigits(), validation_per_class=0), DataPart("search"))
    with pytest.raises(ValueError, match="no validation images to search on; data.validation_per_class=N holds out"):
        part.check()


def test_minigrid_searches_with_seeds_that_no_other_run_has():
    pytest.importorskip("stable_baselines3")
    from dembench.tasks.minigrid.envs import Environment
    from dembench.tasks.minigrid.task import Minigrid, Protocol

    used = []
    for part in (None, DataPart("search"), DataPart("rest")):
        seeds = set()
        for seed in (0, 5):
            task = Minigrid(Environment("MiniGrid-Empty-Random-5x5-v0", 1000), Protocol(), seed=seed, part=part)
            first = task.protocol.eval_seed
            seeds |= {*range(task.seed, task.seed + 1000), *range(first, first + task.protocol.episodes)}
        used.append(seeds)
    everything, search, rest = used
    assert rest == everything
    assert not search & everything


def test_segmentation_judges_other_test_images_and_trains_on_the_same():
    pytest.importorskip("mmseg")
    from dembench.harness.experiment import build_task, resolve

    names = {}
    for part in ("all", "search", "rest"):
        task = build_task(resolve(compose({"task": "segmentation", "part": part})))
        names[part] = [image["data_samples"].img_path for image in task.data.target_test]
        assert len(task.data.target_train) > 0
    assert sorted(names["search"] + names["rest"]) == sorted(names["all"])
    assert len(set(names["all"])) == len(names["all"])
    assert len(names["search"]) == round(0.2 * len(names["all"]))
