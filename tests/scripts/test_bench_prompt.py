"""The bench of prompt tuning: all stages tune to the same, and the figures fit together."""

from rich.console import Console

from dembench.scripts.bench import BENCHES, prompt


def test_the_stages_tune_to_the_same_and_their_gains_are_ratios():
    found = prompt.measure("digits", "cpu", images=3, classes=10, steps=1)
    assert [m.stage for m in found] == [name for name, *_ in prompt.STAGES]
    assert found[0].gain == 1.0
    for m in found:
        assert m.same_prediction == 1.0
        assert m.difference < 0.05
        assert m.gain == found[0].seconds / m.seconds
        assert m.measured_classes == m.classes == 10
    assert found[-1].seconds == found[-1].text_seconds
    assert found[-2].seconds > found[-2].text_seconds
    console = Console(record=True, width=80)
    prompt.show(found, console)
    text = console.export_text()
    assert "…" not in text
    assert "view features kept" in text
    assert "prompt" in BENCHES
