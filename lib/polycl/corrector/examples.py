"""What a corrector learns from: what a segmenter finds of patients, and slices of them as a user may annotate them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from numpy.typing import NDArray
from torch.utils.data import Dataset

from polycl.corrector.grids import annotated_at, resampled, seen_through, shape_at
from polycl.corrector.header import CorrectorHeader
from polycl.corrector.network import MOST
from polycl.dataset import Case, Target
from polycl.errors import InputError
from polycl.inexact import shifted, tighter, wider
from polycl.odds import unpacked
from polycl.segmenter import Segmenter
from polycl.volume import Volume

Mask = NDArray[np.bool_]
FROM_MIDDLE, ANYWHERE = 0.13, 0.2
"""Where users annotate: near the middle of a structure, off by so much of its length (a standard deviation), and this
share of times anywhere."""
SECOND, SHAKY, SHAKE_MM = 0.5, 0.3, 4.0
"""Shares of examples with a second slice, and of slices that are annotated inexactly, by so many mm at most."""
AROUND = 1.4
"""Side of what is cut out before it is turned and scaled, in sides of what the network sees."""
SHOWN = ("image", "odds", "annotated", "mask")


@dataclass(frozen=True, eq=False)
class Patient:
    """A canonical CT in HU, by structure what a segmenter finds (as `polycl.odds` packs it), and where it really is."""

    image: Volume
    found: Mapping[str, NDArray[np.int8]]
    masks: Mapping[str, Mask]


def read_patients(
    cases: Sequence[Case], targets: Sequence[Target], segmenter: Segmenter, progress: Callable[[int, int], None]
) -> list[Patient]:
    """Those of `cases` with at least one of the targets, each named as a label of the segmenter.

    InputError if none of them has any, or a label is missing.
    """
    patients = []
    for number, case in enumerate(cases, start=1):
        image, label = case.read()
        if label is None:
            raise InputError(f"a corrector learns from labelled patients, and there is no label for {case.name}")
        masks = {one.name: np.isin(label.voxels, one.ids) for one in targets}
        present = {name: mask for name, mask in masks.items() if mask.any()}
        if present:
            patients.append(Patient(image, segmenter.likelihood_of(image, list(present)), present))
        progress(number, len(cases))
    if cases and not patients:
        raise InputError(f"none of the {len(cases)} cases shows any of {', '.join(one.name for one in targets)}")
    return patients


@dataclass(frozen=True, eq=False)
class _Seen:
    """A structure at the network's spacing: HU, log-odds and mask, each [1, X, Y, Z]."""

    hu: torch.Tensor
    odds: torch.Tensor
    mask: torch.Tensor


class Examples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs of what the network sees `[C, S, S, S]` and the mask that it should find `[1, S, S, S]`.

    Pair n is the same in each run with this seed. Structures are drawn evenly, whatever the number of patients that
    show one.
    """

    def __init__(
        self, patients: Sequence[Patient], header: CorrectorHeader, *, size: int, items: int, seed: int
    ) -> None:
        self.header, self.size, self.items, self.seed = header, size, items, seed
        self._by_label: dict[str, list[_Seen]] = {}
        for patient in patients:
            for label, seen in _at_spacing(patient, header).items():
                self._by_label.setdefault(label, []).append(seen)

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng((self.seed, index))
        seen = self._draw(random)
        mask = seen.mask[0].numpy()
        slices = annotated(mask, self.header.spacing, random)
        shown = annotated_at(slices, mask.shape[2], (mask.shape[0], mask.shape[1], mask.shape[2]))
        part = self._around(mask, random)
        volumes = zip(SHOWN, (seen.hu, seen.odds, shown, seen.mask), strict=True)
        changed = _changes(self.size).set_random_state(int(random.integers(1 << 31)))(
            {name: volume[(slice(None), *part)].float() for name, volume in volumes}
        )
        image, odds, given, inside = (torch.as_tensor(changed[name]).float() for name in SHOWN)
        return torch.cat([seen_through(image[0].numpy(), self.header.windows), odds, given]), (inside > 0.5).float()

    def _draw(self, random: np.random.Generator) -> _Seen:
        labels = sorted(self._by_label)
        ones = self._by_label[labels[random.integers(len(labels))]]
        return ones[random.integers(len(ones))]

    def _around(self, mask: Mask, random: np.random.Generator) -> tuple[slice, ...]:
        """A part of the volume around the middle of the structure, or around any voxel of it."""
        voxels = np.argwhere(mask)
        middle = voxels.mean(axis=0) if random.random() < 0.5 else voxels[random.integers(len(voxels))]
        low = np.round(middle + random.normal(0, self.size / 16, 3) - AROUND * self.size / 2).astype(int)
        ends = zip(low, low + round(AROUND * self.size), mask.shape, strict=True)
        return tuple(slice(max(0, min(a, count - 1)), max(1, min(b, count))) for a, b, count in ends)


def _at_spacing(patient: Patient, header: CorrectorHeader) -> dict[str, _Seen]:
    """The structures of a patient that are still there at the network's spacing."""
    image = patient.image
    shape = shape_at(image.shape, image.spacing, header.spacing)
    hu = resampled(torch.from_numpy(image.voxels.astype(np.float32))[None], shape).half()
    made = {}
    for label, mask in patient.masks.items():
        odds = torch.from_numpy(unpacked(patient.found[label])).clamp(-MOST, MOST)
        both = resampled(torch.stack([odds, torch.from_numpy(mask).float()]), shape)
        if bool((inside := both[1:] > 0.5).any()):
            made[label] = _Seen(hu, both[:1].half(), inside)
    return made


def _changes(size: int) -> Compose:
    """The random changes of an example: how patients lie, how large they are, side, brightness and noise."""
    return Compose(
        [
            RandAffined(
                SHOWN,
                prob=1.0,
                spatial_size=(size, size, size),
                rotate_range=(0.1, 0.1, 0.2),
                scale_range=(0.15, 0.15, 0.15),
                padding_mode="border",
            ),
            RandFlipd(SHOWN, prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", factors=0.08, prob=0.8),
            RandShiftIntensityd("image", offsets=20.0, prob=0.8),
            RandGaussianNoised("image", prob=0.3, std=12.0),
        ]
    )


def annotated(mask: Mask, spacing: tuple[float, float, float], random: np.random.Generator) -> dict[int, Mask]:
    """One or two slices of a structure [X, Y, Z] as a user may annotate them, by slice."""
    there = np.flatnonzero(mask.any(axis=(0, 1)))
    share = random.uniform(0, 1) if random.random() < ANYWHERE else random.normal(0.5, FROM_MIDDLE)
    chosen = {int(there[int(np.clip(share, 0, 0.999) * len(there))])}
    if random.random() < SECOND:
        chosen.add(int(there[random.integers(len(there))]))
    slices = {z: mask[:, :, z] for z in sorted(chosen)}
    return {z: _shaken(one, spacing, random) if random.random() < SHAKY else one for z, one in slices.items()}


def _shaken(mask: Mask, spacing: Sequence[float], random: np.random.Generator) -> Mask:
    """The mask [X, Y] smaller, larger or moved, by up to `SHAKE_MM`; as it is if nothing would be left."""
    way, mm, plane = random.integers(3), random.uniform(0, SHAKE_MM), spacing[:2]
    if way == 0:
        found = tighter(mask, plane, mm)
    elif way == 1:
        found = wider(mask, plane, mm)
    else:
        found = shifted(mask, plane, mm, random.uniform(0, 2 * np.pi))
    return found if found.any() else mask
