"""Contrastive losses against the formulas as written, and where those would overflow."""

import math

import pytest
import torch
from torch import Tensor

from polycl.contrast.loss import nt_xent, polycl_batch_loss, polycl_loss, qualifying_negatives

pytestmark = pytest.mark.unit

TEMPERATURES = [0.05, 0.5, 2.0]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_one_negative_is_the_papers_formula(temperature: float) -> None:
    anchor, positive, negative = random(3, 5, 7)
    wanted = 0.0
    for a, p, n in zip(anchor, positive, negative, strict=True):
        attraction, repulsion = math.exp(cosine(a, p) / temperature), math.exp(cosine(a, n) / temperature)
        wanted -= math.log(attraction / (attraction + repulsion)) / 5
    assert float(polycl_loss(anchor, positive, negative, temperature)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_negatives_of_the_batch_are_those_that_qualify(temperature: float) -> None:
    anchor, positive, candidates = random(4, 7), random(4, 7, seed=1), random(9, 7, seed=2)
    qualifies = random(4, 9, seed=3) > 0
    wanted = 0.0
    for a, p, allowed in zip(anchor, positive, qualifies, strict=True):
        attraction = math.exp(cosine(a, p) / temperature)
        repulsion = sum(
            math.exp(cosine(a, one) / temperature) for one, is_one in zip(candidates, allowed, strict=True) if is_one
        )
        wanted -= math.log(attraction / (attraction + repulsion)) / 4
    found = polycl_batch_loss(anchor, positive, candidates, qualifies, temperature)
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_a_batch_loss_with_the_drawn_negative_alone_is_the_loss_with_one() -> None:
    anchor, positive, negative = random(3, 5, 7)
    one = polycl_batch_loss(anchor, positive, negative, torch.eye(5, dtype=torch.bool), 0.3)
    torch.testing.assert_close(one, polycl_loss(anchor, positive, negative, 0.3))


def test_an_anchor_without_negatives_adds_nothing() -> None:
    anchor, positive, candidates = (one.requires_grad_() for one in (random(2, 7), random(2, 7, seed=1), random(3, 7)))
    loss = polycl_batch_loss(anchor, positive, candidates, torch.zeros(2, 3, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert not anchor.grad.any()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_is_simclrs_formula(temperature: float) -> None:
    first, second = random(2, 4, 7)
    views = [*first, *second]
    wanted = 0.0
    for i, view in enumerate(views):
        partner = views[(i + 4) % 8]
        others = [one for k, one in enumerate(views) if k != i]
        total = sum(math.exp(cosine(view, one) / temperature) for one in others)
        wanted -= math.log(math.exp(cosine(view, partner) / temperature) / total) / 8
    assert float(nt_xent(first, second, temperature)) == pytest.approx(wanted, rel=1e-9)


def losses(first: Tensor, second: Tensor, third: Tensor, temperature: float) -> list[Tensor]:
    everything = torch.ones(len(first), len(third), dtype=torch.bool)
    return [
        polycl_loss(first, second, third, temperature),
        polycl_batch_loss(first, second, third, everything, temperature),
        nt_xent(first, second, temperature),
    ]


def test_losses_do_not_depend_on_the_length_of_embeddings() -> None:
    views = random(3, 5, 7)
    lengths = random(3, 5, 1, seed=4).exp() * 100
    torch.testing.assert_close(losses(*views, 0.2), losses(*(views * lengths), 0.2))


def test_embeddings_all_the_same_lose_what_guessing_loses() -> None:
    same = torch.ones(3, 4, 7)
    for loss, choices in zip(losses(*same, 0.1), (2, 5, 7), strict=True):
        assert float(loss) == pytest.approx(math.log(choices), rel=1e-6)


@pytest.mark.parametrize("kind", ["perfect", "worst", "zero"])
def test_losses_and_gradients_stay_finite_at_extremes(kind: str) -> None:
    """At this temperature the exponentials of the formula overflow even in float64."""
    anchor = random(3, 7).float()
    other = {"perfect": -anchor, "worst": anchor.clone(), "zero": torch.zeros_like(anchor)}[kind]
    partner = {"perfect": anchor.clone(), "worst": -anchor, "zero": torch.zeros_like(anchor)}[kind]
    views = [one.requires_grad_() for one in (anchor, partner, other)]
    for loss in losses(*views, 1e-3):
        gradients = torch.autograd.grad(loss, views[:2], retain_graph=True)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(one).all() for one in gradients)


def test_negatives_obey_each_strategys_rule() -> None:
    scan, present = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])

    def allowed(strategy: str) -> list[list[int]]:
        mask = qualifying_negatives(strategy, scan[:1], present[:1], scan, present)
        return mask.int().tolist()

    assert allowed("scan") == [[0, 0, 1, 1]]
    assert allowed("organ") == [[0, 1, 0, 1]]
    assert allowed("mixed") == [[0, 0, 0, 1]]
