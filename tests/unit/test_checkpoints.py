"""Checkpoints: whole or not at all, typed, and never code."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polycl import checkpoints
from polycl.checkpoints import Header
from polycl.errors import InputError, ModelError
from polycl.files import sha256_of, write_atomically

pytestmark = pytest.mark.unit


def test_what_is_saved_is_loaded(tmp_path: Path, tiny_header: Header) -> None:
    weights = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    path = tmp_path / "new" / "m.safetensors"
    digest = checkpoints.save(path, weights, tiny_header)
    assert digest == sha256_of(path)
    header, loaded = checkpoints.load(path, sha256=digest)
    assert header == tiny_header
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert [file.name for file in path.parent.iterdir()] == ["m.safetensors"]


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.safetensors are missing"):
        checkpoints.load(tmp_path / "gone.safetensors")


def test_another_hash_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="is expected"):
        checkpoints.load(tiny_checkpoint, sha256="0" * 64)


class _Boom:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("the pickle was loaded",)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_refused_unread(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(_Boom()))
    else:
        torch.save({"a": _Boom()}, path)
    with pytest.raises(ModelError, match="pickle"):
        checkpoints.load(path)


def test_a_header_whose_length_starts_like_a_pickle_is_none(tmp_path: Path, tiny_header: Header) -> None:
    for length in range(2, 130):
        path = tmp_path / "m.safetensors"
        checkpoints.save(path, {"a" * length: torch.zeros(1)}, tiny_header)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    checkpoints.load(path)


def test_a_damaged_file_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        checkpoints.load(path)


@pytest.mark.parametrize("metadata", [None, {"polycl": "{"}, {"polycl": json.dumps({"spacing": 1})}])
def test_a_file_without_a_header_of_ours_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(ModelError, match="header"):
        checkpoints.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
