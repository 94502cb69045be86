"""A trained corrector on a volume."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from polycl import checkpoints, devices, odds
from polycl.corrector.grids import annotated_at, resampled, seen_through, shape_at
from polycl.corrector.header import CorrectorHeader
from polycl.corrector.network import MOST, MULTIPLE, CorrectorNetwork
from polycl.errors import ModelError
from polycl.volume import Volume

Mask = NDArray[np.bool_]
AROUND = 12
"""Voxels that the network sees around what the segmenter found and what was annotated."""
FAR_MM = 250.0
"""From what was annotated, along an axis: what was found further off is none of the structure, and stays."""


class Corrector:
    """One model on one device. Calls may come from several threads; the network runs one at a time."""

    def __init__(self, header: CorrectorHeader, network: CorrectorNetwork, where: devices.Device) -> None:
        self.header, self.where = header, where
        self._network = network.eval().requires_grad_(False).to(where.device)
        self._network.to(memory_format=torch.channels_last_3d)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, *, sha256: str | None = None, device: str = "auto", precision: str = "auto") -> Corrector:
        """The corrector in the checkpoint at `path`; ModelError if it is missing, altered or none of ours."""
        where = devices.choose(device, precision)
        header, weights = checkpoints.load_as(CorrectorHeader, path, sha256=sha256)
        try:
            network = CorrectorNetwork(header)
            network.load_state_dict({name: one.float() for name, one in weights.items()})
        except RuntimeError:
            raise ModelError(f"the weights in {path.name} do not fit the network that its header describes") from None
        return cls(header, network, where)

    def knows(self, segmenter: str, label: str) -> bool:
        """Whether it learned to correct what `segmenter` finds of `label`."""
        return segmenter == self.header.segmenter and label in self.header.labels

    def corrected(
        self,
        volume: Volume,
        found: NDArray[np.int8],
        annotated: Mapping[int, Mask],
        check: Callable[[], None] = lambda: None,
    ) -> NDArray[np.int8]:
        """Log-odds of each voxel of a canonical CT in HU, `[X, Y, Z]`, once the annotated slices are known.

        Args:
            volume: the CT.
            found: log-odds by the segmenter, of the same shape. These, and those to be, as `polycl.odds` packs them.
            annotated: masks [X, Y] of slices that show the structure.
            check: called at each layer; may raise to stop.

        What is far from all that was found or annotated stays, as do details that the network's voxels are too coarse
        for: it is what it adds that is resampled.
        """
        part = self._box(volume, found > 0, annotated)
        if part is None:
            return found
        hu, before = volume.voxels[part], torch.from_numpy(odds.unpacked(found[part])).clamp(-MOST, MOST)
        slices = {z - part[2].start: mask[part[:2]] for z, mask in annotated.items()}
        shape = shape_at(hu.shape, volume.spacing, self.header.spacing)
        volumes = torch.cat([seen_through(hu, self.header.windows), before[None]])
        seen = torch.cat([resampled(volumes, shape), annotated_at(slices, hu.shape[2], shape)])
        change = self.log_odds(seen[None], check)[0] - seen[-2:-1]
        result = found.copy()
        result[part] = odds.packed(before + resampled(change, (hu.shape[0], hu.shape[1], hu.shape[2]))[0])
        return result

    @torch.inference_mode()
    def log_odds(self, seen: torch.Tensor, check: Callable[[], None] = lambda: None) -> torch.Tensor:
        """`CorrectorNetwork` on `[B, C, X, Y, Z]` of any size: `[B, 1, X, Y, Z]`, float32; `check` as above."""
        missing = [-side % MULTIPLE for side in seen.shape[2:]]
        if all(side <= MULTIPLE for side in seen.shape[2:]):
            missing[0] += MULTIPLE  # its deepest features would be of one voxel, of which there is no variance
        padded = F.pad(seen, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate").to(self.where.device)
        mixed = self.where.precision != "fp32"
        autocast = torch.autocast(self.where.device.type, self.where.dtype if mixed else None, enabled=mixed)
        with self._lock, autocast, self._checked(check):
            result: torch.Tensor = self._network(padded).cpu()
        return result[:, :, : seen.shape[2], : seen.shape[3], : seen.shape[4]]

    @contextmanager
    def _checked(self, check: Callable[[], None]) -> Iterator[None]:
        """The network calls `check` before each of its convolutions."""
        layers = [module for module in self._network.modules() if isinstance(module, torch.nn.Conv3d)]
        handles = [layer.register_forward_pre_hook(lambda *_: check()) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _box(self, volume: Volume, found: Mask, annotated: Mapping[int, Mask]) -> tuple[slice, slice, slice] | None:
        """The part of the volume that is looked at; None if nothing was found or annotated."""
        shown = np.zeros(found.shape, dtype=bool)
        for slice_number, mask in annotated.items():
            shown[:, :, slice_number] = mask
        if not (there := found | shown).any():
            return None
        box = ndimage.find_objects(there.astype(np.uint8))[0]
        drawn = ndimage.find_objects(shown.astype(np.uint8))[0] if shown.any() else box
        x, y, z = (
            slice(
                max(0, side.start - math.ceil(AROUND * to / mm), near.start - math.ceil(FAR_MM / mm)),
                min(count, side.stop + math.ceil(AROUND * to / mm), near.stop + math.ceil(FAR_MM / mm)),
            )
            for side, near, to, mm, count in zip(
                box, drawn, self.header.spacing, volume.spacing, volume.shape, strict=True
            )
        )
        return x, y, z
