"""Local contrast: the same places in two views, and the loss that asks for them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from polycl.contrast.local import LocalViews, local_loss

pytestmark = pytest.mark.unit

SIDE = 48


@pytest.fixture
def slices() -> torch.Tensor:
    """Smooth, so that a value survives resampling, and nowhere air."""
    torch.manual_seed(0)
    coarse = torch.rand(4, 1, 6, 6) * 0.3 + 0.4
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0.3, 0.8)


def values(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(images, places[:, :, None], align_corners=False)[:, 0, :, 0]


def test_a_place_shows_the_same_tissue_in_both_views(slices: torch.Tensor) -> None:
    views = LocalViews.of(slices)
    assert views.seen.float().mean() > 0.5
    here, there = values(views.first, views.places[0]), values(views.second, views.places[1])
    for one, other, seen in zip(here, there, views.seen, strict=True):
        # brightness and contrast differ, so the relation is a line
        both = torch.corrcoef(torch.stack([one[seen], other[seen]]))
        assert both[0, 1] > 0.8


def test_views_differ_and_stay_in_the_window(slices: torch.Tensor) -> None:
    views = LocalViews.of(slices)
    assert not torch.allclose(views.first, views.second, atol=0.05)
    assert min(views.first.min(), views.second.min()) >= 0
    assert max(views.first.max(), views.second.max()) <= 1


def test_the_loss_of_equal_embeddings_is_that_of_a_guess(slices: torch.Tensor) -> None:
    views = LocalViews.of(slices)
    loss = local_loss(torch.ones(8, 5, SIDE, SIDE), views, 0.1)
    seen = views.seen.sum(dim=1).float()
    assert float(loss) == pytest.approx(float((seen * seen.log()).sum() / seen.sum()), rel=1e-3)


def test_embeddings_that_tell_places_apart_lose_little_and_wrong_ones_much(slices: torch.Tensor) -> None:
    """The embedding is the place in the slice itself, as waves; the second view's are then exchanged between slices."""
    views = LocalViews.of(slices, degrees=0.0, scale=0.0, shift=0.0)
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    waves = [f(k * math.pi * a) for k in (0.5, 1, 2, 4, 8) for a in (x, y) for f in (torch.sin, torch.cos)]
    where = torch.stack(waves).expand(8, -1, -1, -1)
    right = float(local_loss(where, views, 0.05))
    turned = torch.cat([where[:4], where[4:].flip(2)])
    assert right < 1.5
    assert float(local_loss(turned, views, 0.05)) > 2 * right


def test_the_loss_has_a_gradient_where_places_are_and_nowhere_else(slices: torch.Tensor) -> None:
    views = LocalViews.of(slices)
    embeddings = torch.randn(8, 5, SIDE, SIDE, requires_grad=True)
    (gradient,) = torch.autograd.grad(local_loss(embeddings, views, 0.1), embeddings)
    touched = (gradient.abs().sum(dim=1) > 0).flatten(1).sum(dim=1)
    assert (touched > 0).all()
    assert (touched <= 4 * 64).all()


def test_a_slice_of_air_gives_no_places_that_cannot_be_drawn() -> None:
    views = LocalViews.of(torch.zeros(2, 1, SIDE, SIDE))
    assert torch.isfinite(local_loss(torch.randn(4, 5, SIDE, SIDE), views, 0.1))
