"""A trained segmenter on a volume: batches of axial slices in, a label map in the caller's own grid out."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from polycl import checkpoints, devices, odds
from polycl.errors import ModelError, NotFoundError
from polycl.segmenter.network import STRIDE, SegmentationNetwork, fold_batch_norm
from polycl.segmenter.through_plane import FLOOR, smoothed
from polycl.slices import SliceGrid
from polycl.volume import Volume
from polycl.window import Window

Progress = Callable[[int, int], None]
"""Called with slices done and slices in all."""

CERTAIN = 0.98
BATCH_PIXELS = {"cpu": 2 * 256 * 256, "cuda": 32 * 256 * 256}
"""Network input pixels in one batch: on a CPU few, so that feature maps stay near the caches."""
READ_AT_ONCE = 16
"""Slices, or one batch if that is more: a slice that several others are seen with is read for all of them."""


class Segmenter:
    """One model on one device. Calls may come from several threads; the network runs one at a time."""

    def __init__(self, header: checkpoints.Header, network: nn.Module, where: devices.Device) -> None:
        self.header = header
        self.where = where
        folded = fold_batch_norm(network.eval().requires_grad_(False))
        self._network = folded.to(where.device, where.dtype).to(memory_format=torch.channels_last)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, *, sha256: str | None = None, device: str = "auto", precision: str = "auto") -> Segmenter:
        """The segmenter in the checkpoint at `path`; ModelError if it is missing, altered or none of ours."""
        where = devices.choose(device, precision)
        header, weights = checkpoints.load(path, sha256=sha256)
        if header.kind != "segmenter":
            raise ModelError(f"{path.name} holds an {header.kind}, not a segmenter; polycl finetune makes one from it")
        network = SegmentationNetwork(header.network)
        try:
            network.load_state_dict(weights)
        except RuntimeError:
            raise ModelError(f"the weights in {path.name} do not fit the network that its header describes") from None
        return cls(header, network, where)

    @property
    def window(self) -> Window:
        """What it sees slices through."""
        trained = self.header.preprocessing.window
        return Window(level=trained.level, width=trained.width / self.header.contrast)

    def segment(
        self,
        volume: Volume,
        labels: Sequence[str] | None = None,
        progress: Progress | None = None,
        *,
        crop: bool = True,
        only: range | None = None,
    ) -> Volume:
        """Label map (uint8, ids as in `header.labels`) of a CT in HU, on the same grid in the caller's own axes.

        Args:
            volume: a CT in HU with any axis order.
            labels: names to keep; the others become background. All of them if None.
            progress: called after each batch.
            crop: leave out the air around the body, which costs time and holds no organ.
            only: look at these canonical slices alone; then nothing is known of whole organs or of neighbouring slices,
                and pieces stay.
        """
        keep = self._ids(labels)
        canonical = volume.canonical()
        result = volume.with_voxels(np.zeros_like(volume.voxels, dtype=np.uint8))
        out = result.canonical().voxels
        grid = SliceGrid.of(canonical, self.header.preprocessing.spacing, STRIDE, crop=crop)
        x0, x1, y0, y1 = grid.box
        seen = np.zeros((2, self.header.network.classes), dtype=np.int64)
        for slices, part in self._restored(canonical, grid, only, seen, progress):
            surest = part.max(dim=1).indices  # argmax is the same, and on a CPU takes ten times as long
            out[x0:x1, y0:y1, slices] = np.moveaxis(surest.to(torch.uint8).cpu().numpy(), 0, 2)
        self._clean(out, keep, seen, only is None)
        return result

    def likelihood(self, volume: Volume, label: str, progress: Progress | None = None) -> NDArray[np.int8]:
        """Log-odds of each voxel of a canonical CT in HU to be `label`, `[X, Y, Z]`, as `polycl.odds` packs them.

        The least in the air around the body, and where `segment` would drop what it found.
        """
        return self.likelihood_of(volume, [label], progress)[label]

    def likelihood_of(
        self, volume: Volume, labels: Sequence[str], progress: Progress | None = None
    ) -> dict[str, NDArray[np.int8]]:
        """The same for several labels at once, by label."""
        width, height, depth = volume.shape
        found = np.full((len(labels), depth, width, height), -odds.MOST, dtype=np.int8)  # in the order it is written
        grid = SliceGrid.of(volume, self.header.preprocessing.spacing, STRIDE)
        x0, x1, y0, y1 = grid.box
        seen = np.zeros((2, self.header.network.classes), dtype=np.int64)
        wanted = [self.header.labels[label] for label in labels]
        for slices, part in self._restored(volume, grid, None, seen, progress, partial(_log_odds, of=wanted)):
            found[:, slices, x0:x1, y0:y1] = odds.packed(part.transpose(0, 1))
        result = {label: np.moveaxis(whole, 0, 2) for label, whole in zip(labels, found, strict=True)}
        for label, whole in result.items():
            index = self.header.labels[label]
            kept = np.where(whole > 0, np.uint8(index), np.uint8(0))
            self._clean(kept, {index}, seen, True)
            whole[(whole > 0) & (kept == 0)] = -odds.MOST
        return result

    def likelihoods(self, volume: Volume, z: int) -> dict[str, NDArray[np.int8]]:
        """Log-odds, packed like those of `likelihood`, for slice `z` of a canonical CT and every label, `[X, Y]`.

        Nothing is known of whole organs or of neighbouring slices.
        """
        grid = SliceGrid.of(volume, self.header.preprocessing.spacing, STRIDE)
        x0, x1, y0, y1 = grid.box
        seen = np.zeros((2, self.header.network.classes), dtype=np.int64)
        labels = self.header.labels
        log_odds = partial(_log_odds, of=list(labels.values()))
        [(_, part)] = self._restored(volume, grid, range(z, z + 1), seen, None, log_odds)
        found = np.full((len(labels), *volume.shape[:2]), -odds.MOST, dtype=np.int8)
        found[:, x0:x1, y0:y1] = odds.packed(part[0])
        return dict(zip(labels, found, strict=True))

    def _restored(
        self,
        canonical: Volume,
        grid: SliceGrid,
        only: range | None,
        seen: NDArray[np.int64],
        progress: Progress | None,
        wanted_of: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slices, and what is wanted of their logits, `[B, K, x1 - x0, y1 - y0]` over the grid's box; see `segment`.

        `wanted_of` takes logits `[B, C, *grid.padded]` to `[B, K, *grid.padded]`.
        """
        wanted = only if only is not None else range(canonical.shape[2])
        parts = self._parts(canonical, grid, wanted, seen, progress)
        if self.header.smooth and only is None:
            parts = smoothed(parts, self.header.smooth / canonical.spacing[2])
        done = wanted.start
        for part in parts:
            yield slice(done, done + len(part)), grid.restore(wanted_of(part))
            done += len(part)

    def _parts(
        self, canonical: Volume, grid: SliceGrid, slices: range, seen: NDArray[np.int64], progress: Progress | None
    ) -> Iterator[torch.Tensor]:
        """Logits of `slices`, a batch at a time; what `count_certain` finds in them is added to `seen`."""
        batch = self.batch_of(grid)
        block = batch * max(1, READ_AT_ONCE // batch)
        for start in range(slices.start, slices.stop, block):
            images = self.read(canonical, grid, start, min(start + block, slices.stop))
            for first in range(0, len(images), batch):
                part = images[first : first + batch]
                logits = self.logits(part)
                if self.header.certain:
                    seen += count_certain(logits)
                yield logits
                if progress is not None:
                    progress(start + first + len(part) - slices.start, len(slices))

    def read(self, canonical: Volume, grid: SliceGrid, start: int, stop: int) -> torch.Tensor:
        """Slices `start` to `stop` as the network sees them, `[B, channels, *grid.padded]`."""
        return grid.read(canonical, self.window, start, stop, self.header.preprocessing.beside)

    @torch.inference_mode()
    def logits(self, slices: torch.Tensor) -> torch.Tensor:
        """Logits `[B, classes, X, Y]` of windowed slices `[B, channels, X, Y]`, sides multiples of `STRIDE`."""
        with self._lock:
            return self._network(slices.to(self.where.device, self.where.dtype, memory_format=torch.channels_last))

    @torch.inference_mode()
    def observe(self, slices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits as `logits` has them, and the slices in the encoder's space `[B, E]`.

        The latter are means and maxima of the deepest features: after instance norm the means alone tell nothing.
        """
        with self._lock:
            batch = slices.to(self.where.device, self.where.dtype, memory_format=torch.channels_last)
            features = cast(SegmentationNetwork, self._network).encoder(batch)
            logits = cast(SegmentationNetwork, self._network).decoder(features)
        deepest = features[-1].float()
        return logits, torch.cat([deepest.mean(dim=(2, 3)), deepest.amax(dim=(2, 3))], dim=1)

    def batch_of(self, grid: SliceGrid) -> int:
        """Slices of this grid that the network takes at once."""
        return max(1, BATCH_PIXELS[self.where.device.type] // (grid.padded[0] * grid.padded[1]))

    def _ids(self, labels: Sequence[str] | None) -> set[int]:
        known = self.header.labels
        unknown = [name for name in labels or () if name not in known]
        if unknown:
            raise NotFoundError(
                f"this model has no label {', '.join(map(repr, unknown))}; its labels are {', '.join(known)}"
            )
        return {known[name] for name in (known if labels is None else labels)}

    def _clean(self, out: NDArray[np.uint8], keep: set[int], seen: NDArray[np.int64], whole: bool) -> None:
        for name, index in self.header.labels.items():
            pixels, certain = seen[:, index]
            if index not in keep or (whole and certain < self.header.certain * pixels):
                out[out == index] = 0
            elif whole and name in self.header.largest:
                keep_largest(out, index, self.header.largest[name])


def _log_odds(logits: torch.Tensor, of: Sequence[int]) -> torch.Tensor:
    """Log-odds `[B, len(of), X, Y]`, of some classes, by logits `[B, C, X, Y]`."""
    return torch.logit(logits.float().softmax(dim=1)[:, list(of)], eps=FLOOR)


def count_certain(logits: torch.Tensor) -> NDArray[np.int64]:
    """Pixels of each class, and those with a probability over `CERTAIN`, `[2, C]`, in logits `[B, C, X, Y]`.

    An organ that is there is certain but for its rim; what only resembles it seldom is.
    """
    logits = logits.float()
    highest, classes = logits.max(dim=1)
    sure = highest - logits.logsumexp(dim=1) > math.log(CERTAIN)
    count = logits.shape[1]
    pixels = torch.bincount(classes.flatten(), minlength=count)
    return torch.stack([pixels, torch.bincount(classes[sure], minlength=count)]).cpu().numpy()


def keep_largest(labels: NDArray[np.uint8], index: int, count: int) -> None:
    """Clear, in place, all but the `count` largest 3D components (faces touching) of the voxels equal to `index`."""
    box = _bounding_box(labels, index)
    if box is None:
        return
    inside = labels[box]
    components, found = ndimage.label(inside == index)
    if found <= count:
        return
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    dropped = np.ones(found + 1, dtype=bool)
    dropped[np.argsort(sizes)[-count:]] = False
    dropped[0] = False
    inside[dropped[components]] = 0


def _bounding_box(labels: NDArray[np.uint8], index: int) -> tuple[slice, slice, slice] | None:
    """The box of the voxels equal to `index`, found slice by slice so that no copy of the volume is made."""
    low, high = np.array(labels.shape), np.zeros(3, dtype=int)
    for z in range(labels.shape[2]):
        hits = labels[:, :, z] == index
        rows = np.flatnonzero(hits.any(axis=1))
        if len(rows):
            columns = np.flatnonzero(hits.any(axis=0))
            low = np.minimum(low, (rows[0], columns[0], z))
            high = np.maximum(high, (rows[-1] + 1, columns[-1] + 1, z + 1))
    if (high == 0).all():
        return None
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
