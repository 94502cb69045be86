"""Slices embedded before anyone clicks: of an opened study, from the middle or the organ outwards; on disk if asked."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from monailabel.interfaces.utils.app import app_instance
from replies import reply
from starlette.testclient import TestClient

from fake_sam import FakeSam, nothing_left_ahead
from polycl.monailabel.ahead import STUDIES
from polycl.sam.slices import SliceEncoder
from polycl.settings import Settings
from polycl.volume import Volume, read_volume
from polycl.window import Window

pytestmark = [pytest.mark.app, pytest.mark.usefixtures("sam")]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Settings:
    state = tmp_path_factory.mktemp("state")
    return Settings(state=state, weights=tiny_checkpoint.parent, precision="fp32", embedding_disk="64MiB")


@pytest.fixture
def order(client: TestClient, sam: FakeSam, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slices in the order in which they are embedded, with nothing in memory at first."""
    seen: list[int] = []
    compute = SliceEncoder.compute

    def counted(encoder: SliceEncoder, key: Any) -> Any:
        seen.append(key.index)
        return compute(encoder, key)

    monkeypatch.setattr(SliceEncoder, "compute", counted)
    nothing_left_ahead()
    return seen


def embedded(image: Volume) -> list[int]:
    """Slices of `image` that are in memory."""
    engines = app_instance().runtime.engines
    encoder = SliceEncoder(image, engines.named(), Window.named("soft-tissue"), engines.cache)
    return [z for z in range(image.canonical().shape[2]) if encoder.key(z) in engines.cache]


def test_a_study_that_is_downloaded_from_the_middle_outwards(
    client: TestClient, studies: Path, order: list[int]
) -> None:
    assert client.get("/datastore/image", params={"image": "ras"}).status_code == 200
    nothing_left_ahead()
    assert order == [3, 4, 2, 5, 1, 6, 0]
    assert embedded(read_volume(studies / "ras.nii.gz")) == list(range(7))
    assert client.get("/datastore/image", params={"image": "ras"}).status_code == 200
    nothing_left_ahead()
    assert len(order) == 7, "it is not done again"


def test_the_next_sample(client: TestClient, studies: Path, order: list[int]) -> None:
    sample = client.post("/activelearning/first", json={}).json()
    nothing_left_ahead()
    depth = read_volume(sample["path"]).canonical().shape[2]
    assert sorted(order) == list(range(depth))


def test_around_the_organ_once_it_is_known(client: TestClient, studies: Path, order: list[int]) -> None:
    body = {"params": json.dumps({"result_extension": ".nii.gz"})}
    _, mask = reply(client.post("/infer/tiny", params={"image": "las_down"}, data=body))
    nothing_left_ahead()
    image = read_volume(studies / "las_down.nii.gz")
    found = [z for z, plane in enumerate(image.with_voxels(mask).canonical().voxels.transpose(2, 0, 1)) if plane.any()]
    assert order[0] == found[len(found) // 2]
    assert sorted(order) == list(range(7))


def test_a_request_goes_first(client: TestClient, order: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is answered no slice is begun."""
    at_work: list[int] = []
    cache = app_instance().runtime.engines.cache
    asked = threading.Event()

    def slow(done: int, total: int) -> None:
        asked.wait(0.05)
        at_work.append(len(order))

    monkeypatch.setattr(app_instance().runtime, "progress", slow)
    with cache.serving():
        client.get("/datastore/image", params={"image": "oblique"})
        assert client.post("/infer/tiny", params={"image": "oblique"}).status_code == 200
    assert set(at_work) == {0}
    nothing_left_ahead()
    assert sorted(order) == list(range(7))


def test_only_the_studies_opened_last_are_filled(client: TestClient, order: list[int]) -> None:
    cache = app_instance().runtime.engines.cache
    with cache.serving():
        for name in ("swapped", "lps", "one_slice"):
            client.get("/datastore/image", params={"image": name})
        assert cache.statistics()["waiting"] >= STUDIES
    nothing_left_ahead()
    assert len(order) == 1 + 7, "the first of three was dropped"


def test_statistics_and_the_disk(client: TestClient, settings: Settings, order: list[int]) -> None:
    client.get("/datastore/image", params={"image": "lps"})
    nothing_left_ahead()
    counted = client.get("/info/").json()["embeddings"]
    assert counted["prefetched"] >= 7
    assert counted["capacity"] == settings.embedding_memory == 1 << 29
    assert counted["disk_capacity"] == 64 << 20
    app_instance().runtime.engines.cache._disk.flush()
    files = list((settings.cache / "embeddings").glob("*.embedding"))
    assert len(files) >= 7
    assert (settings.cache / "embeddings").stat().st_mode & 0o077 == 0


def test_an_image_that_cannot_be_used_is_left_to_who_asks_for_it(client: TestClient, studies: Path) -> None:
    (studies / "broken.nii.gz").write_bytes(b"nothing")
    app_instance().runtime.ahead.opened(studies / "broken.nii.gz")
    app_instance().runtime.ahead.opened(studies / "gone.nii.gz")
    nothing_left_ahead()
    (studies / "broken.nii.gz").unlink()
    assert client.get("/info/").status_code == 200


def test_it_can_be_switched_off(client: TestClient, studies: Path, order: list[int]) -> None:
    ahead = app_instance().runtime.ahead
    ahead.stop()
    ahead.opened(studies / "ras.nii.gz")
    nothing_left_ahead()
    assert order == []
