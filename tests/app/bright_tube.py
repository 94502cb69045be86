"""A bright tube in an image of any axis order, what is asked of a server about it, and what comes back of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.testclient import TestClient

from polycl.volume import Volume, from_canonical_index

SHAPE = (40, 36, 24)
X, Y, Z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
BODY = ((X - 20) ** 2 + (Y - 16) ** 2 < 49) & (Z >= 4) & (Z < 20)
Array = NDArray[Any]


def stored(canonical: Array, affine: Array) -> Volume:
    """A canonical array as an image with this orientation has it."""
    step = np.argmax(np.abs(affine[:3, :3]), axis=0)
    voxels = canonical.transpose(step)
    flips = tuple(axis for axis in range(3) if affine[step[axis], axis] < 0)
    return Volume(np.ascontiguousarray(np.flip(voxels, flips)), affine)


def infer(client: TestClient, model: str, image: str = "tube_lps", sent: Path | None = None, **params: Any) -> Any:
    files = {"label": (sent.name, sent.read_bytes())} if sent else None
    body = {"params": json.dumps({"result_extension": ".nii.gz"} | params)}
    return client.post(f"/infer/{model}", params={"image": image}, data=body, files=files)


def own(image: Volume, *points: tuple[int, int, int]) -> list[list[int]]:
    """Canonical voxels in the image's own axes."""
    found: list[list[int]] = from_canonical_index(list(points), image.shape, image.affine).tolist()
    return found


def canonical(image: Volume, mask: Array) -> Array:
    return image.with_voxels(mask).canonical().voxels


def dice(one: Array, other: Array) -> float:
    return 2 * int((one & other).sum()) / int(one.sum() + other.sum())


def slices(mask: Array) -> list[int]:
    return [int(z) for z in np.flatnonzero(mask.any(axis=(0, 1)))]
