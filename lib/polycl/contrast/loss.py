"""Contrastive losses on embeddings, in forms that stay finite however sure the network is.

Similarity is the cosine, so embeddings need no normalisation before. `B` anchors, `C` candidates, `E` numbers each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SMALLEST_NORM = 1e-6
"""Embeddings shorter than this are not scaled up to length 1: their gradient would drown all others."""


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings `[..., E]` scaled to length 1."""
    return F.normalize(embeddings, dim=-1, eps=SMALLEST_NORM)


def polycl_loss(
    anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, temperature: float
) -> torch.Tensor:
    """PolyCL's loss with one negative an anchor, the mean over the batch.

    `-log(e^(s+/t) / (e^(s+/t) + e^(s-/t)))` of Ward, Moseley and Imran, MELBA 2026:002, where s+ and s- are the cosines
    of the anchor with its positive and its negative; it equals `softplus((s- - s+) / t)`, which cannot overflow. A
    network that gives every slice the same embedding has a loss of ln 2.

    Shape:
        anchor, positive, negative: `[B, E]`; result: scalar.
    """
    anchor, positive, negative = unit(anchor), unit(positive), unit(negative)
    difference = (anchor * negative).sum(dim=-1) - (anchor * positive).sum(dim=-1)
    return F.softplus(difference / temperature).mean()


def polycl_batch_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    candidates: torch.Tensor,
    qualifies: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """PolyCL's loss with all negatives that a batch holds, the mean over its anchors.

    `-log(e^(s+/t) / (e^(s+/t) + sum_k e^(s_k/t)))` over the candidates k that qualify: InfoNCE (van den Oord, Li and
    Vinyals 2018, arXiv 1807.03748, equation 4) with PolyCL's choice of positive and negatives. With one candidate it is
    `polycl_loss`. An anchor without a negative adds nothing.

    Shape:
        anchor, positive: `[B, E]`; candidates: `[C, E]`; qualifies: bool `[B, C]`; result: scalar.
    """
    anchor, positive, candidates = unit(anchor), unit(positive), unit(candidates)
    attraction = (anchor * positive).sum(dim=-1, keepdim=True)
    repulsion = (anchor @ candidates.T).masked_fill(~qualifies, -torch.inf)
    logits = torch.cat([attraction, repulsion], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's loss: each view must find the other view of its slice among all other views of the batch.

    Equation 1 of Chen, Kornblith, Norouzi and Hinton 2020, arXiv 2002.05709, the mean over the 2B views.

    Shape:
        first, second: `[B, E]`, row i of both from one slice; result: scalar.
    """
    views = unit(torch.cat([first, second]))
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    logits = (views @ views.T).masked_fill(itself, -torch.inf) / temperature
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(logits, partner)


def qualifying_negatives(
    strategy: str,
    anchor_scan: torch.Tensor,
    anchor_present: torch.Tensor,
    scan: torch.Tensor,
    present: torch.Tensor,
) -> torch.Tensor:
    """Which candidates may be an anchor's negative under the strategy's rule.

    `scan`: those of another scan; `organ`: those that disagree on the organ; `mixed`: both.

    Shape:
        anchor_scan, anchor_present: `[B]`; scan, present: `[C]`; result: bool `[B, C]`.
    """
    elsewhere = anchor_scan[:, None] != scan[None]
    disagrees = anchor_present[:, None] != present[None]
    return {"scan": elsewhere, "organ": disagrees, "mixed": elsewhere & disagrees}[strategy]
