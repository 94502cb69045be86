"""HU windows."""

import pytest
import torch

from polycl.errors import InputError
from polycl.window import Window

pytestmark = pytest.mark.unit


def test_the_ends_of_the_window_are_zero_and_one() -> None:
    window = Window.named("soft-tissue")
    hu = torch.tensor([-3024, -160, 40, 240, 3000], dtype=torch.int16)
    torch.testing.assert_close(window.apply(hu), torch.tensor([0, 0, 0.5, 1, 1]))
    assert hu[0] == -3024, "the input is left as it was"


def test_an_unknown_window_lists_the_known() -> None:
    with pytest.raises(InputError, match="soft-tissue, lung, bone, brain"):
        Window.named("liver")


def test_a_window_has_a_width() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Window(level=0, width=0)
