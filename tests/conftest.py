"""What every test may use: a tiny checkpoint, and the real data where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polycl import checkpoints
from polycl.checkpoints import Header, NetworkConfig, Preprocessing
from polycl.phantom import make_phantom
from polycl.segmenter.network import SegmentationNetwork
from polycl.window import Window
from random_weights import shared_out

torch.set_num_threads(1)  # tiny arrays: threads only wait for each other

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def tiny_header() -> Header:
    """Two labels, few channels, coarse pixels."""
    return Header(
        network=NetworkConfig(features=(4, 4, 8, 8, 8, 4), classes=3),
        preprocessing=Preprocessing(window=Window(level=40, width=400), spacing=4.0, size=64),
        labels={"liver": 1, "spleen": 2},
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_header: Header) -> Path:
    """A checkpoint with random weights, scaled so that the classes share the phantom's pixels between them."""
    torch.manual_seed(3)
    network = SegmentationNetwork(tiny_header.network)
    phantom = make_phantom(0, shape=(48, 48, 4), spacing=(8.0, 8.0, 40.0)).image
    slices = tiny_header.preprocessing.window.apply(torch.from_numpy(np.moveaxis(phantom.voxels, 2, 0).copy()))[:, None]
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    checkpoints.save(path, shared_out(network, slices).state_dict(), tiny_header)
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT; the test is skipped where there is none."""
    if not (SHARED / "data" / "lits").is_dir():
        pytest.skip("needs the real CT in ../shared/data, which is not part of the repository")
    return SHARED / "data"
