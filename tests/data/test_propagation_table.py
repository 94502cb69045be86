"""The shipped network on real CT does what its card says."""

from pathlib import Path

import pytest

from polycl.cli.bench import _load
from polycl.settings import Settings

CARD = {
    "chaos liver": 0.797,
    "lits liver": 0.894,
    "ircad right kidney": 0.828,
    "ircad left kidney": 0.906,
    "ircad spleen": 0.848,
    "totalseg liver": 0.711,
    "totalseg spleen": 0.793,
    "totalseg left kidney": 0.537,
    "totalseg right kidney": 0.587,
    "openkbp mandible": 0.455,
    "openkbp brainstem": 0.450,
    "openkbp right parotid": 0.570,
    "openkbp left parotid": 0.647,
}
"""Mean Dice; below the aims of the bench's table, as the card says too."""
PLAY = 0.03
"""Another processor rounds differently, and a mask goes from slice to slice."""


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_propagation_does_what_its_card_says(real_data: Path, tmp_path: Path) -> None:
    figures = _load("propagation_accuracy").run(Settings(state=tmp_path, device="cpu"))
    assert figures.keys() == CARD.keys()
    assert {name: row["dice"] for name, row in figures.items() if row["dice"] < CARD[name] - PLAY} == {}
