"""SIGKILL at random moments while labels are saved: what was acknowledged is there, readable and whole, ever after.

Nothing here depends on how fast the machine is: a process is killed after some acknowledged saves and a moment more,
wherever that finds it. `tests/client/test_server_kills.py` does the same to a whole server.
"""

import hashlib
import itertools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from polycl.labels.library import Library, final_labels
from polycl.labels.saving import Sent, save
from polycl.volume import Volume, read_volume, write_volume

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 50
SHAPE = (24, 20, 6)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
IMAGES = ("a", "b")
KEEP = 100_000


def painted(number: int) -> np.ndarray:
    """A label like no other: the bits of `number` are painted on its first slice, and something on each other one."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[4:12, 3:15, 1:] = 1
    for bit in range(SHAPE[0]):
        voxels[bit, 0, 0] = 2 * (number >> bit & 1)
    voxels[0, 1, 0] = 2
    return voxels


def annotate(store: Path, scratch: Path, first: int, told: int) -> None:
    """Save one label after the other, and write a line to the pipe `told` for each that is saved. Does not return."""
    for number in itertools.count(first):
        image = IMAGES[number % 2]
        path = scratch / f"{number}.nii.gz"
        write_volume(Volume(painted(number), AFFINE), path)
        sent = Sent.read(
            path, {"label_info": [{"name": "liver"}, {"name": "spleen"}]}, annotator=f"person {number % 3}"
        )
        saved = save(Library(store, KEEP), image, "final", sent, read_volume(store / f"{image}.nii.gz"))
        line = {"number": number, "image": image, "version": saved.record.version, "sha256": saved.record.sha256}
        os.write(told, (json.dumps(line) + "\n").encode())


def killed_while_saving(store: Path, scratch: Path, first: int, saves: int, seconds: float) -> list[dict[str, Any]]:
    """What a process acknowledged that was killed so many seconds after so many acknowledged saves."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            annotate(store, scratch, first, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        told = [json.loads(lines.readline()) for _ in range(saves)]
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        return told + [json.loads(line) for line in lines if line.endswith(b"\n")]


def check(library: Library, one: dict[str, Any]) -> None:
    """The version that was acknowledged, as libraries that are not ours read it."""
    label = library.version(one["image"], one["version"])
    assert label is not None, one
    assert hashlib.sha256(label.label.read_bytes()).hexdigest() == one["sha256"] == label.record.sha256
    read = nib.load(label.label)
    np.testing.assert_array_equal(np.asarray(read.dataobj), painted(one["number"]))
    np.testing.assert_allclose(read.affine, AFFINE)


def test_no_acknowledged_label_is_lost(tmp_path: Path) -> None:
    store, scratch, luck = tmp_path / "studies", tmp_path / "scratch", random.Random(6)
    scratch.mkdir()
    for seed, name in enumerate(IMAGES):
        store.mkdir(exist_ok=True)
        voxels = np.random.default_rng(seed).integers(-900, 900, SHAPE).astype(np.int16)
        write_volume(Volume(voxels, AFFINE), store / f"{name}.nii.gz")
    began = time.monotonic()
    told = killed_while_saving(store, scratch, 0, 4, 0.0)
    one_save = (time.monotonic() - began) / 4
    for turn in range(1, KILLS):
        more = killed_while_saving(store, scratch, 1000 * turn, luck.randrange(2), luck.uniform(0, 1.5 * one_save))
        library = Library(store, KEEP)
        library.heal()  # as a server does when it starts
        for one in more:
            check(library, one)
        told += more
        for image in IMAGES:
            mine = [one["version"] for one in told if one["image"] == image]
            record = library.record(image)
            assert record is not None
            assert record.version >= max(mine), "the newest acknowledged label, or one that was not acknowledged yet"
            current = library.current(image)
            assert current is not None
            assert hashlib.sha256(current.label.read_bytes()).hexdigest() == record.sha256
    library = Library(store, KEEP)
    assert len(told) >= KILLS // 2
    for one in told:
        check(library, one)
    assert len({(one["image"], one["version"]) for one in told}) == len(told), "no number is given twice"
    assert {label.image_id for label in final_labels(store)} == set(IMAGES)
