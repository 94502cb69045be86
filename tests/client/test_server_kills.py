"""A real server, killed by SIGKILL at random moments of saving and publishing, and started again on what it left.

`SERVER_KILLS=50 .venv/bin/pytest tests/client/test_server_kills.py` kills it more often; a start takes seconds. Saving
alone is killed fifty times in `tests/unit/test_saving_kills.py`. Nothing here depends on how fast the machine is.
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from recording import SHAPE
from starting import AFFINES, serving

from polycl import checkpoints
from polycl.labels.library import Library
from polycl.learning.versions import Version, Versions
from polycl.volume import Volume, write_volume

pytestmark = [pytest.mark.client, pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("SERVER_KILLS", "3"))
MODEL = "tiny"
SECONDS = 120
"""For one answer, of a machine that is busy with other things."""


def painted(number: int) -> np.ndarray:
    """A label like no other: the bits of `number` are on its first slice."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[4:20, 3:15, 1:] = 1
    for bit in range(SHAPE[0]):
        voxels[bit, 0, 0] = number >> bit & 1
    voxels[0, 1, 0] = 2
    return voxels


class People:
    """An annotator for each image, who saves label after label, and one who publishes and rolls back, until nobody
    answers. `told` is what the server acknowledged."""

    def __init__(self, address: str, folder: Path, first: int) -> None:
        self.told: list[dict[str, Any]] = []
        self._refused: list[str] = []
        self._address, self._folder, self._first = address, folder, first
        self._more = threading.Condition()
        work = [lambda image=image: self._annotate(image) for image in AFFINES]
        self._threads = [threading.Thread(target=self._until_dead, args=(one,)) for one in (*work, self._switch)]
        for thread in self._threads:
            thread.start()

    def wait(self, saves: int) -> None:
        """Return once so many labels were acknowledged."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.told) >= saves or self._refused, SECONDS), "no label is saved"

    def end(self) -> None:
        """The server is dead: return when everybody has noticed. Nobody was refused before that."""
        for thread in self._threads:
            thread.join()
        assert not self._refused

    def _until_dead(self, work: Any) -> None:
        try:
            work()
        except httpx.TransportError:  # the server is dead
            return
        except httpx.HTTPStatusError as error:
            with self._more:
                self._refused.append(error.response.text)
                self._more.notify_all()

    def _annotate(self, image: str) -> None:
        info = json.dumps({"label_info": [{"name": "liver"}, {"name": "spleen"}], "client_id": f"reader of {image}"})
        for number in itertools.count(self._first):
            path = self._folder / f"{image}.nii.gz"
            write_volume(Volume(painted(number), AFFINES[image]), path)
            files = {"label": ("label.nii.gz", path.read_bytes())}
            url, query = f"{self._address}/datastore/label", {"image": image}
            answer = httpx.put(
                url, params=query, data={"params": info}, files=files, timeout=SECONDS
            ).raise_for_status()
            with self._more:
                self.told.append({"number": number, "image": image, "version": answer.json()["version"]})
                self._more.notify_all()

    def _switch(self) -> None:
        for number in itertools.cycle((1, 2, 0)):
            body = {"model": MODEL, "version": number}
            httpx.post(f"{self._address}/polycl/api/models/publish", json=body, timeout=SECONDS).raise_for_status()


@pytest.fixture
def site(tmp_path: Path, images: Path, tiny_checkpoint: Path) -> Path:
    """A folder with studies, and a state with two versions of the one model."""
    shutil.copytree(images, tmp_path / "studies")
    (tmp_path / "scratch").mkdir()
    versions = Versions(tmp_path / "state" / "models" / "versions")
    (tmp_path / "state" / "models" / "versions" / MODEL).mkdir(parents=True)
    for shift in (1.0, 2.0):
        header, weights = checkpoints.load(tiny_checkpoint)
        weights["decoder.head.bias"][1] += shift
        file = tmp_path / "candidate.safetensors"
        version = Version(
            number=1,
            sha256=checkpoints.save(file, weights, header),
            parent=0,
            parent_sha256="",
            run=f"run {shift}",
            created=datetime.now(UTC),
            seconds=1.0,
            blend=1.0,
            publish=False,
            reason="not better",
        )
        versions.add(MODEL, file, version)
    return tmp_path


def check(address: str, site: Path, told: list[dict[str, Any]]) -> None:
    """Whatever was acknowledged is there, as it was sent; the index names it; the live model is whole."""
    library = Library(site / "studies", 100_000)
    for one in told:
        kept = library.version(one["image"], one["version"])
        assert kept is not None, one
        assert hashlib.sha256(kept.label.read_bytes()).hexdigest() == kept.record.sha256
        np.testing.assert_array_equal(np.asarray(nib.load(kept.label).dataobj), painted(one["number"]))
    index = json.loads((site / "studies" / "datastore_v2.json").read_bytes())["objects"]
    assert set(index) == set(AFFINES)
    for image in {one["image"] for one in told}:
        newest = max(one["version"] for one in told if one["image"] == image)
        query = {"label": image, "tag": "final"}
        info = httpx.get(f"{address}/datastore/label/info", params=query, timeout=SECONDS).raise_for_status().json()
        assert info["record"]["version"] >= newest, "that, or one that was saved and not acknowledged any more"
        assert index[image]["labels"]["final"]["info"]["version"] == info["record"]["version"]
        label = httpx.get(f"{address}/datastore/label", params=query, timeout=SECONDS).raise_for_status().content
        assert hashlib.sha256(label).hexdigest() == info["record"]["sha256"]
    params, query = {"params": '{"result_extension": ".nrrd"}'}, {"image": next(iter(AFFINES)), "output": "image"}
    reply = httpx.post(f"{address}/infer/{MODEL}", params=query, data=params, timeout=SECONDS).raise_for_status()
    live = Versions(site / "state" / "models" / "versions").live(MODEL)
    assert reply.headers["X-PolyCL-Model"] == f"{MODEL}@{live}"


def test_killed_and_started_again(site: Path, tiny_checkpoint: Path) -> None:
    luck = random.Random(2)
    told: list[dict[str, Any]] = []
    for turn in range(KILLS):
        with serving(site, tiny_checkpoint.parent, POLYCL_LABEL_VERSIONS="100000") as (address, process):
            check(address, site, told)
            people = People(address, site / "scratch", 1000 * turn)
            people.wait(luck.randint(1, 4))
            time.sleep(luck.uniform(0, 0.3))
            process.kill()
            people.end()
            told += people.told
    with serving(site, tiny_checkpoint.parent, POLYCL_LABEL_VERSIONS="100000") as (address, _):
        check(address, site, told)
    assert len(told) >= KILLS
    assert len({(one["image"], one["version"]) for one in told}) == len(told), "no number is given twice"
