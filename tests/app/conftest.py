"""The server in this process, over a folder of tiny images in many orientations."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bright_tube import BODY, stored
from starlette.testclient import TestClient
from tiny_images import AFFINES, ct

import fake_sam
import fake_sam2
from fake_sam import FakeSam
from fake_sam2 import FakeSam2
from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.monailabel.segmented import Segmentations
from polycl.segmenter import Segmenter
from polycl.segmenter.network import SegmentationNetwork
from polycl.settings import Settings
from polycl.volume import Volume, write_volume


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for seed, (name, affine) in enumerate(AFFINES.items()):
        write_volume(Volume(ct(seed), affine), folder / f"{name}.nii.gz")
    write_volume(Volume(ct(9), AFFINES["lps"]), folder / "as_nrrd.nrrd")
    write_volume(Volume(ct(10, (36, 28, 1)), AFFINES["lps"]), folder / "one_slice.nii.gz")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_header: Header) -> Path:
    """Random weights that give every class on every image here, which a few seeds do."""
    torch.manual_seed(51)
    network = SegmentationNetwork(tiny_header.network)
    torch.nn.init.normal_(network.decoder.head.weight, std=2.0)
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    checkpoints.save(path, network.state_dict(), tiny_header)
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Settings:
    state = tmp_path_factory.mktemp("state")
    return Settings(state=state, weights=tiny_checkpoint.parent, precision="fp32", serve_models="polycl-liver,tiny")


@pytest.fixture(scope="module")
def client(studies: Path, settings: Settings) -> Iterator[TestClient]:
    """A client of the running server. Exceptions become answers, as for a real client.

    For one module at a time, because the server's settings are in the environment meanwhile.
    """
    from monailabel.config import settings as monailabel_settings

    from polycl.server import create_app

    before, environment, temporary = monailabel_settings.model_dump(), dict(os.environ), tempfile.tempdir
    app = create_app(str(studies), settings)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as running:
        yield running
    tempfile.tempdir = temporary
    os.environ.clear()
    os.environ.update(environment)
    for name, value in before.items():
        setattr(monailabel_settings, name, value)


@pytest.fixture(autouse=True)
def computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test had segmented is computed again for the next, which may have put something in between."""
    monkeypatch.setattr(Segmentations, "get", lambda self, image, model: None)


@pytest.fixture(scope="module")
def sam() -> Iterator[FakeSam]:
    """The server has weights of SAM; a module asks for it before its first client."""
    yield from fake_sam.installed()


@pytest.fixture(scope="module")
def sam2() -> Iterator[FakeSam2]:
    """The server has a network that propagates; a module asks for it before its first client."""
    yield from fake_sam2.installed()


@pytest.fixture(scope="module")
def tubes(studies: Path) -> dict[str, Volume]:
    """A bright tube in three axis orders, and one slice of it; a module asks for them before its first client."""
    made = {
        name: stored(np.where(BODY, 100, -100).astype(np.int16), AFFINES[name]) for name in ("ras", "swapped", "lps")
    }
    made["flat"] = Volume(np.where(BODY[:, :, 10:11], 100, -100).astype(np.int16), AFFINES["ras"])
    for name, volume in made.items():
        write_volume(volume, studies / f"tube_{name}.nii.gz")
    return made


@pytest.fixture(scope="session")
def segmenter(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")
