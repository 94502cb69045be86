"""The shipped network on real CT does what its card says.

On a few volumes of each organ, from the middle slice; `WHOLE=1 .venv/bin/pytest tests/data/test_propagation_table.py`
measures the card's table over again, all volumes and all seeds, which takes minutes.
"""

import os
import re
from pathlib import Path

import pytest

from polycl.cli.bench import _load
from polycl.propagate.loading import DEFAULT, load_propagator
from polycl.settings import Settings

CARD = Path(__file__).resolve().parents[2] / "model" / f"{DEFAULT}.md"
ROW = re.compile(r"^\| (\w+ [a-z ]+\w) \| (\d+) \| ([0-9.]+) \| ([0-9.]+) \|", re.MULTILINE)
"""Data and organ, volumes, Dice, aim."""
WHOLE = os.environ.get("WHOLE") == "1"
MOST = 3
PLAY, PLAY_OF_FEW = 0.03, 0.2
"""Another processor rounds differently, and a mask goes from slice to slice; some of the volumes are not their mean."""


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_propagation_does_what_its_card_says(real_data: Path, tmp_path: Path) -> None:
    bench, engine = _load("propagation_accuracy"), load_propagator(DEFAULT, Settings(state=tmp_path, device="cpu"))
    figures = bench.measure(engine, None) if WHOLE else bench.measure(engine, None, MOST, varied=False)
    card = {name: (int(volumes), float(dice)) for name, volumes, dice, _ in ROW.findall(CARD.read_text())}
    assert figures.keys() == card.keys()
    short = {}
    for name, (volumes, dice) in card.items():
        play = PLAY if figures[name]["volumes"] == volumes else PLAY_OF_FEW
        if figures[name]["dice"] < dice - play:
            short[name] = figures[name]["dice"]
    assert short == {}
