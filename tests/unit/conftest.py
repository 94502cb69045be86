"""What several unit tests use: the command line in this process, and what labels, runs and SEGs are tried on."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scattered_seg
import sent_labels
import torch
from labelled import save_phantoms

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.cli import main
from polycl.dicomseg import SourceSeries
from polycl.labels.record import SavedLabel
from polycl.segmenter import Segmenter
from polycl.segmenter.network import SegmentationNetwork
from polycl.volume import Volume, write_volume

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Path
) -> Run:
    """`polycl ARGS…` in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("POLYCL_WEIGHTS", str(tiny_checkpoint.parent))
    monkeypatch.setenv("POLYCL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("POLYCL_DEVICE", "cpu")
    monkeypatch.setenv("POLYCL_PRECISION", "fp32")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polycl", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def segmenter(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter.load(tiny_checkpoint, device="cpu", precision="fp32")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder of two images, as `sent_labels` are of."""
    folder = tmp_path / "studies"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b.1"):
        voxels = rng.integers(-900, 900, sent_labels.SHAPE).astype(np.int16)
        write_volume(Volume(voxels, sent_labels.AFFINE), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def header(tiny_header: Header) -> Header:
    """As coarse as the phantoms, which is as fast as it gets."""
    return tiny_header.model_copy(
        update={"preprocessing": tiny_header.preprocessing.model_copy(update={"spacing": 8.0, "size": 48})}
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, header: Header) -> Path:
    """A model that knows nothing: random weights."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoints.save(path, SegmentationNetwork(header.network).state_dict(), header)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[SavedLabel]:
    """Nine patients, brighter than any CT: three are kept for validation."""
    return save_phantoms(tmp_path_factory.mktemp("store"), 9, shift_hu=100)


@pytest.fixture
def source(tmp_path: Path) -> SourceSeries:
    """A small series."""
    return scattered_seg.series(tmp_path / "ct")


@pytest.fixture
def written(source: SourceSeries, tmp_path: Path) -> Path:
    """A DICOM SEG of two structures on it."""
    label = source.grid.with_voxels(scattered_seg.labels())
    return scattered_seg.write(tmp_path, source, label, {"spleen": 2, "left kidney": 5})
