"""Names: a valid one passes, another one is refused in one line with the nearest and all valid names."""

import pytest

from dembench.lookup import lookup

VALID = ("gaussian_noise", "shot_noise", "fog")


@pytest.mark.parametrize("name", VALID)
def test_a_valid_name_is_returned(name):
    assert lookup(name, VALID, "corruption") == name


def test_a_generator_of_names_is_enough():
    assert lookup("fog", (name for name in VALID), "corruption") == "fog"


@pytest.mark.parametrize(
    ("typed", "meant"), [("gausian_noise", "gaussian_noise"), ("FOG", "fog"), ("shotnoise", "shot_noise")]
)
def test_the_nearest_name_comes_first(typed, meant):
    with pytest.raises(ValueError, match=f"^unknown corruption '{typed}'; nearest: {meant}") as caught:
        lookup(typed, VALID, "corruption")
    assert str(caught.value).endswith("; valid: gaussian_noise, shot_noise, fog")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["zzz", "", 3, None, ["fog"]])
def test_nothing_near_and_things_that_are_no_names(name):
    with pytest.raises(ValueError, match="^unknown corruption .*; valid: gaussian_noise, shot_noise, fog$") as caught:
        lookup(name, VALID, "corruption")
    if name == "zzz":
        assert "nearest" not in str(caught.value)


def test_a_very_long_list_is_cut_and_counted():
    with pytest.raises(ValueError, match=r"nearest: net1345, .*; valid: net0, net1, .*net99, \.\.\. \(2000 in all\)$"):
        lookup("net12345", [f"net{k}" for k in range(2000)], "model")
