"""What a clip starts from: a shaky mask, a box or points, as a person or a coarse model gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

NEGATIVE, POSITIVE, BOX_START, BOX_END, PADDING = 0, 1, 2, 3, -1
"""SAM's labels of points."""


@dataclass(frozen=True)
class Shake:
    """How far a seed may stray, in mm: grown or shrunk, shifted, and its outline wavy."""

    grow: float = 3.0
    shift: float = 3.0
    waves: float = 0.35


def shaky(mask: torch.Tensor, pixel_mm: float, shake: Shake, random: np.random.Generator) -> torch.Tensor:
    """A bool mask `[S, S]` near `mask`, never empty: grown or shrunk by an even amount, its outline wavy, shifted."""
    size = mask.shape[0]
    reach = max(1, round(min(2 * shake.grow / pixel_mm, size / 16)))
    soft = mask.float()[None, None]
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        soft = F.avg_pool2d(soft, kernel, stride=1, padding=padding, count_include_pad=False)
    rough = torch.from_numpy(random.standard_normal((1, 1, 6, 6)).astype(np.float32))
    waves = F.interpolate(rough, size=(size, size), mode="bicubic", align_corners=False) * (shake.waves / 2)
    waves = torch.where((soft > 0) & (soft < 1), random.uniform(0, 1) * waves, 0)  # at the outline only
    found = (soft + waves)[0, 0] > 0.5 + 0.35 * random.uniform(-1, 1)
    limit = min(shake.shift / pixel_mm, size / 32)
    steps = [round(float(step)) for step in random.uniform(-limit, limit, 2)]
    found = torch.roll(found, steps, (0, 1))
    return found if bool(found.any()) else mask


def box_points(mask: torch.Tensor, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The box of a mask, its corners off by up to a twelfth of its sides: coordinates (x, y) `[2, 2]`, labels `[2]`."""
    rows, columns = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
    x, y = columns[[0, -1]].float(), rows[[0, -1]].float()
    corners = torch.stack([x, y], dim=1)
    play = torch.stack([x[1] - x[0], y[1] - y[0]]) / 12 + 1
    corners += torch.from_numpy(random.uniform(-1, 1, (2, 2)).astype(np.float32)) * play
    return corners.clamp(0, mask.shape[0] - 1), torch.tensor([BOX_START, BOX_END], dtype=torch.int32)


def click_points(mask: torch.Tensor, count: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` clicks: the first inside the mask, later ones inside it or beside it. As `box_points`."""
    inside = F.max_pool2d(-mask.float()[None, None], 5, stride=1, padding=2)[0, 0] == -1
    near = (F.max_pool2d(mask.float()[None, None], 41, stride=4, padding=20)[0, 0] > 0).repeat_interleave(4, 0)
    beside = near.repeat_interleave(4, 1)[: mask.shape[0], : mask.shape[1]] & ~mask
    points, labels = [], []
    for number in range(count):
        positive = number == 0 or random.random() < 0.6 or not bool(beside.any())
        area = torch.nonzero((inside if bool(inside.any()) else mask) if positive else beside)
        row, column = area[int(random.integers(len(area)))].tolist()
        points.append((column, row))
        labels.append(POSITIVE if positive else NEGATIVE)
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels, dtype=torch.int32)
