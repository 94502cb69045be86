"""Clips: objects of one scan, over a few slices, as the network will see them when it propagates.

A clip of one slice is a still: what is learned from it is to outline, from a prompt and the image alone.

Batch i is drawn from (seed, i) alone: the same whatever the number of workers, and after a resume. Clips of a batch
share what the network cannot mix in one step: the numbers of the slices, the direction, and the kind of seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from polycl.propagate.training.seeds import Shake, box_points, click_points, shaky
from polycl.propagate.training.store import Kind, ObjectStore, Scan
from polycl.propagate.training.views import Look, View, draw_view

Objects = tuple[int, list[list[int]]]
"""Number of a scan, and the numbers of its objects by layer."""
SeedKind = Literal["mask", "box", "points"]
ENDLESS: tuple[Kind, ...] = ("region", "merged")
"""Where such a structure ends is nothing that an image shows."""
MOST = 0.6
"""Share of a view that an object takes at most, where others share the view."""
BEFORE = 64
"""Number of the seed slice of a clip that runs downwards: as in a long volume."""


@dataclass(frozen=True)
class ClipRules:
    """How clips are drawn.

    Attributes:
        length: slices of a clip, the seed included.
        objects: objects of a clip; they share its images.
        kinds: share of clips of each kind of object; kinds that the store lacks are left out.
        seeds: share of batches that start from each kind of seed.
        far: share of batches whose seed is far away, with a shaky mask of the slice before as the only other memory.
        far_slices: how far, in slices.
        two: share of batches with two seeds, the second beyond the last slice.
        ending: share of clips of objects with a known end that are laid so that it comes within the clip.
        told: chance that a slice's memory is a shaky truth, not what the network made of the slice.
        groups: how often a data set is drawn; 1 where nothing is said.
        gaps_mm: smallest and largest distance between two slices of a clip, where the scan has slices so thin.
        fill: smallest and largest share of the view's side that the seed's longer side takes.
        least_pixels: a seed has at least so many pixels of the view.
        shake: how far seeds and told memories stray.
        rough: how far the masks of stills do.
    """

    length: int = 5
    objects: int = 1
    kinds: dict[Kind, float] = field(
        default_factory=lambda: {"label": 0.42, "lesion": 0.05, "threshold": 0.25, "merged": 0.2, "region": 0.08}
    )
    seeds: dict[SeedKind, float] = field(default_factory=lambda: {"mask": 0.6, "box": 0.2, "points": 0.2})
    far: float = 0.3
    far_slices: tuple[int, int] = (4, 24)
    two: float = 0.15
    ending: float = 0.5
    told: float = 0.25
    groups: dict[str, float] = field(default_factory=lambda: {"phantom": 0.3})
    gaps_mm: tuple[float, float] = (1.5, 7.0)
    fill: tuple[float, float] = (0.15, 0.62)
    least_pixels: int = 40
    shake: Shake = field(default_factory=Shake)
    rough: Shake = field(default_factory=lambda: Shake(grow=6.0, shift=6.0, waves=0.6))


class ClipBatch(NamedTuple):
    """Clips side by side: B of them, and N = B x objects, those of a clip in a row.

    Attributes:
        images: what the network sees, `[B, T, 3, S, S]`.
        masks: the objects, bool `[N, T, S, S]`.
        counts: whether a slice takes part in the loss, bool `[N, T]`.
        memories: shaky truth, bool `[N, T, S, S]`; of slice 0, the seed.
        told: whether `memories` takes the place of the network's own mask in its memory, bool `[N, T]`.
        frames: slice numbers as the network is told them.
        reverse: whether they fall.
        seed: kind of seed; a mask is `memories[:, 0]`.
        seeds: which of the slices are seeds.
        points, labels: of a box or of points, `[N, P, 2]` and `[N, P]`.
    """

    images: torch.Tensor
    masks: torch.Tensor
    counts: torch.Tensor
    memories: torch.Tensor
    told: torch.Tensor
    frames: tuple[int, ...]
    reverse: bool
    seed: SeedKind
    seeds: tuple[int, ...]
    points: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> ClipBatch:
        """The same on a device."""
        moved = {name: one.to(device) for name, one in self._asdict().items() if isinstance(one, torch.Tensor)}
        return ClipBatch(**(self._asdict() | moved))


class Clips(Dataset[ClipBatch]):
    """Batches by number."""

    def __init__(
        self, store: ObjectStore, rules: ClipRules, view: View, *, batches: int, batch: int, seed: int | tuple[int, int]
    ) -> None:
        self.store, self.rules, self.view = store, rules, view
        self.batches, self.batch = batches, batch
        self.seed = seed if isinstance(seed, tuple) else (seed, 0)
        self._kinds: dict[Kind, dict[str, list[Objects]]] = {}
        for kind, scans in store.kinds().items():
            for index, layers in scans:
                self._kinds.setdefault(kind, {}).setdefault(store.scans[index].group, []).append((index, layers))
        shares = {kind: share for kind, share in rules.kinds.items() if kind in self._kinds and share > 0}
        self._names = list(shares)
        self._shares = np.array(list(shares.values())) / sum(shares.values())

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, item: int) -> ClipBatch:
        if not 0 <= item < self.batches:
            raise IndexError(item)
        random = np.random.default_rng((*self.seed, item))
        rules = self.rules
        names = list(rules.seeds)
        seed = names[int(random.choice(len(names), p=np.array(list(rules.seeds.values())) / sum(rules.seeds.values())))]
        moves = seed == "mask" and rules.length > 1
        far = int(random.integers(*rules.far_slices)) if moves and random.random() < rules.far else 1
        two = moves and far == 1 and random.random() < rules.two
        steps = [0, *range(far, far + rules.length - 1)]
        if two:
            steps[-1] += int(random.integers(0, 6))
        clicks = int(random.integers(1, 4))
        made = [self._clip(steps, seed, clicks, random) for _ in range(self.batch)]
        reverse = bool(random.random() < 0.5)
        frames = tuple(BEFORE - step if reverse else step for step in steps)
        images, objects = zip(*made, strict=True)
        parts = [torch.stack(part) for part in zip(*(one for each in objects for one in each), strict=True)]
        seeds = (0, len(steps) - 1) if two else (0,)
        return ClipBatch(
            images=torch.stack(images),
            masks=parts[0],
            counts=parts[1],
            memories=parts[2],
            told=parts[3],
            frames=frames,
            reverse=reverse,
            seed=seed,
            seeds=seeds,
            points=parts[4],
            labels=parts[5],
        )

    def _clip(
        self, steps: Sequence[int], seed: SeedKind, clicks: int, random: np.random.Generator
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Images, and the other parts of each object; draws anew until an object shows where the clip starts."""
        rules = self.rules
        while True:
            kind = self._names[int(random.choice(len(self._names), p=self._shares))]
            scan, number = self._object(kind, random)
            slices = self._slices(scan, number, steps, kind in ENDLESS, random)
            if slices is None:
                continue
            view = draw_view(scan, self.store.folder, number, slices[0], self.view, rules.fill, random)
            if view is None:
                continue
            seen = Look(scan, self.store.folder, slices, view)
            masks = seen.masks(*scan.objects[number][:2])
            if self._shows(masks, steps):
                break
        drawn = [(masks, kind)]
        for _ in range(8 * (rules.objects - 1)):
            if len(drawn) < rules.objects and (other := self._other(seen, steps, random)) is not None:
                drawn.append(other)
        drawn += [drawn[0]] * (rules.objects - len(drawn))
        parts = [self._seeded(masks, kind, steps, seed, clicks, view.pixel_mm, random) for masks, kind in drawn]
        return seen.images(random), parts

    def _shows(self, masks: torch.Tensor, steps: Sequence[int]) -> bool:
        """Whether the object is large enough in the seed slice, and after a leap in the slice that is told."""
        areas = masks.flatten(1).sum(1)
        leaps = len(steps) > 2 and steps[1] > 1
        return bool(areas[0] >= self.rules.least_pixels and (not leaps or areas[1] >= self.rules.least_pixels))

    def _other(self, seen: Look, steps: Sequence[int], random: np.random.Generator) -> tuple[torch.Tensor, Kind] | None:
        """The masks and kind of one more object that shows in the same view, if the draw finds one."""
        kind = self._names[int(random.choice(len(self._names), p=self._shares))]
        layers = [number for number, layer in enumerate(seen.scan.layers) if layer.kind == kind]
        if not layers:
            return None
        layer = layers[int(random.integers(len(layers)))]
        ids = seen.others(layer, 2 * self.rules.least_pixels)
        if not ids:
            return None
        masks = seen.masks(layer, ids[int(random.integers(len(ids)))])
        return (masks, kind) if self._shows(masks, steps) and float(masks[0].float().mean()) < MOST else None

    def _seeded(
        self,
        masks: torch.Tensor,
        kind: Kind,
        steps: Sequence[int],
        seed: SeedKind,
        clicks: int,
        pixel_mm: float,
        random: np.random.Generator,
    ) -> list[torch.Tensor]:
        """The parts of a batch that belong to one object of one clip."""
        memories = torch.stack([self._remembered(mask, pixel_mm, random) for mask in masks])
        told = torch.from_numpy(random.random(len(steps)) < self.rules.told)
        counts = torch.ones(len(steps), dtype=torch.bool)
        if len(steps) > 2 and steps[1] > 1:
            told[1], counts[1] = True, False
        if kind in ENDLESS:
            counts &= masks.flatten(1).any(1)
        if seed == "box":
            points, labels = box_points(masks[0], random)
        elif seed == "points":
            points, labels = click_points(masks[0], clicks, random)
        else:
            points, labels = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
        return [masks, counts, memories, told, points, labels]

    def _remembered(self, mask: torch.Tensor, pixel_mm: float, random: np.random.Generator) -> torch.Tensor:
        still = self.rules.length == 1
        if not bool(mask.any()) or (random.random() < 0.3 and not still):
            return mask
        return shaky(mask, pixel_mm, self.rules.rough if still else self.rules.shake, random)

    def _object(self, kind: Kind, random: np.random.Generator) -> tuple[Scan, int]:
        """A data set, one of its scans, one of its layers of that kind, then one of the layer's objects."""
        groups = self._kinds[kind]
        shares = np.array([self.rules.groups.get(name, 1.0) for name in groups])
        scans = groups[list(groups)[int(random.choice(len(groups), p=shares / shares.sum()))]]
        index, layers = scans[int(random.integers(len(scans)))]
        layer = layers[int(random.integers(len(layers)))]
        return self.store.scans[index], layer[int(random.integers(len(layer)))]

    def _slices(
        self, scan: Scan, number: int, steps: Sequence[int], endless: bool, random: np.random.Generator
    ) -> NDArray[np.int64] | None:
        """Slice numbers of a clip, the seed inside the object and all inside the scan; None where they do not fit."""
        _, _, z0, z1 = scan.objects[number][:4]
        low, high = self.rules.gaps_mm
        gap = max(1, round(float(np.exp(random.uniform(np.log(low), np.log(high)))) / scan.spacing[0]))
        way = 1 if random.random() < 0.5 else -1
        first = int(random.integers(z0, z1))
        if len(steps) > 1 and not endless and random.random() < self.rules.ending:
            left = gap * steps[int(random.integers(1, len(steps)))]
            first = int(np.clip(z1 - left if way > 0 else z0 + left - 1, z0, z1 - 1))
        for direction in (way, -way):
            for step in range(gap, 0, -1):
                found = first + direction * step * np.asarray(steps)
                if found.min() >= 0 and found.max() < scan.shape[0]:
                    return found
        return None
