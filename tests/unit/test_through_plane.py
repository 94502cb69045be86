"""Averaging through the plane, against scipy's Gaussian filter over the whole volume at once."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from polycl.segmenter.through_plane import BLOCK, REACH, smoothed

pytestmark = pytest.mark.unit


def parts_of(logits: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    edges = np.cumsum([0, *sizes])
    return [logits[low:high] for low, high in zip(edges, [*edges[1:], len(logits)], strict=True) if low < len(logits)]


@given(
    count=st.integers(1, 3 * BLOCK),
    sizes=st.lists(st.integers(1, 5), max_size=20),
    sigma=st.floats(0.1, 12.0),
    seed=st.integers(0, 9),
)
def test_any_parts_give_the_gaussian_mean_of_probabilities(
    count: int, sizes: list[int], sigma: float, seed: int
) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (count, 3, 2, 4)).astype(np.float32))
    found = torch.cat(list(smoothed(parts_of(logits, sizes), sigma)))
    reach = int(np.ceil(REACH * sigma))
    probabilities = logits.softmax(dim=1).numpy().astype(np.float64)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.gaussian_filter1d(values, sigma, axis=0, mode="constant", radius=reach)

    expected = total(probabilities) / total(np.ones_like(probabilities))
    assert found.shape == logits.shape
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-4, atol=2e-6)


def test_few_slices_are_held_at_a_time() -> None:
    given_in, held = 0, []

    def parts() -> Iterator[torch.Tensor]:
        nonlocal given_in
        for _ in range(200):
            given_in += 1
            yield torch.zeros(1, 2, 1, 1)

    given_back = 0
    for part in smoothed(parts(), 2.0):
        given_back += len(part)
        held.append(given_in - given_back)
    assert given_back == 200
    assert max(held) <= 4 + BLOCK


def test_a_slice_that_stands_alone_is_outvoted_and_an_end_is_not_pulled_down() -> None:
    logits = torch.full((9, 2, 1, 1), 0.0)
    logits[:, 1] = -4.0
    logits[4, 1] = 50.0
    alone = torch.cat(list(smoothed([logits], 1.5)))
    assert alone.argmax(dim=1).sum() == 0
    logits[:] = 0.0
    logits[:, 1] = 4.0
    whole = torch.cat(list(smoothed([logits], 1.5)))
    torch.testing.assert_close(whole.exp(), logits.softmax(dim=1))
