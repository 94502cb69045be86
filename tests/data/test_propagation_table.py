"""The shipped network on real CT: every row of the bench's table reaches its Dice, and ends where the organ ends."""

from pathlib import Path

import pytest

from polycl.cli.bench import _load
from polycl.settings import Settings


@pytest.mark.data
@pytest.mark.slow
def test_propagation_reaches_its_table(real_data: Path, tmp_path: Path) -> None:
    figures = _load("propagation_accuracy").run(Settings(state=tmp_path, device="cpu"))
    if not figures:
        pytest.skip("needs the weights of polycl-sam2-ct")
    assert {name: row["dice"] for name, row in figures.items() if row["dice"] < row["least"]} == {}
    assert {name: row["beyond"] for name, row in figures.items() if row["beyond"] >= 0.03} == {}
    assert {name: row for name, row in figures.items() if row["dice"] - row.get("shaky", row["dice"]) > 0.03} == {}
