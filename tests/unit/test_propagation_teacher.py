"""The start of the small SAM 2: SAM's weights out of an ONNX file, and an encoder that learns embeddings."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from polycl.devices import choose
from polycl.errors import ModelError
from polycl.propagate.architecture import ConvolutionalTrunkConfig, Sam2Config, build
from polycl.propagate.training.distil import distil
from polycl.propagate.training.mobile_sam import decoder_weights, start_as_sam
from polycl.propagate.training.onnx_weights import read_graph
from polycl.propagate.training.recipe import CT_FRAMES, Distillation

pytestmark = pytest.mark.unit

TINY = Sam2Config(
    image_size=64,
    trunk=ConvolutionalTrunkConfig(widths=(8, 16, 16, 32), layers=(1, 1, 1, 1)),
    width=32,
    memory_width=32,
    attention_layers=1,
    attention_hidden=32,
    fuser_layers=1,
    dropout=0.0,
    memories=3,
    pointers=3,
    tracking_masks=1,
)


def varint(value: int) -> bytes:
    parts = []
    while True:
        value, low = value >> 7, value & 127
        parts.append(low | (128 if value else 0))
        if not value:
            return bytes(parts)


def part(number: int, content: bytes | str | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray, *, packed: bool = False) -> bytes:
    """An initializer; its sizes one by one or packed, as exporters of different age write them."""
    sizes = part(1, b"".join(varint(n) for n in array.shape)) if packed else b"".join(part(1, n) for n in array.shape)
    return part(5, sizes + part(2, 1) + part(8, name) + part(9, array.astype("<f4").tobytes()))


def node(operator: str, inputs: list[str], output: str) -> bytes:
    return part(1, b"".join(part(1, name) for name in inputs) + part(2, output) + part(4, operator))


def test_weights_come_out_of_an_onnx_file_under_the_names_of_their_layers(tmp_path: Path) -> None:
    matrix, bias = np.arange(6.0).reshape(2, 3), np.array([1.0, 2.0, 3.0])
    unpacked = struct.pack("<2f", 7.0, 8.0)
    graph = (
        node("MatMul", ["x", "onnx::MatMul_1"], "y")
        + node("Add", ["layer.bias", "y"], "z")
        + tensor("onnx::MatMul_1", matrix, packed=True)
        + tensor("layer.bias", bias)
        + part(5, part(1, 2) + part(2, 1) + part(4, unpacked) + part(8, "scale"))
        + part(5, part(1, 1) + part(2, 7) + part(8, "an integer") + part(9, struct.pack("<q", 5)))
    )
    file = tmp_path / "tiny.onnx"
    file.write_bytes(part(1, 8) + part(7, graph))
    found = read_graph(file)
    assert np.array_equal(found.linear_weights()["layer.weight"], matrix.T)
    assert np.array_equal(found.weights["layer.bias"], bias)
    assert found.weights["scale"].tolist() == [7.0, 8.0]
    assert "an integer" not in found.weights


@pytest.mark.parametrize("content", [b"", b"no protocol buffer", part(7, b"\x2a\xff\xff\xff"), part(7, part(1, b""))])
def test_what_is_no_onnx_file_is_told(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        read_graph(file)


def test_a_decoder_that_is_not_sams_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    file.write_bytes(part(7, tensor("mask_decoder.x.bias", np.ones(3))))
    with pytest.raises(ModelError, match="not SAM's decoder"):
        decoder_weights(file)


def test_weights_that_do_not_fit_the_network_are_refused() -> None:
    network = build(TINY)
    with pytest.raises(ModelError, match="sam_mask_decoder"):
        start_as_sam(network, {"sam_mask_decoder.iou_token.weight": torch.zeros(1, 256)})


def test_the_encoder_learns_its_lessons(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    files = []
    for number in range(4):
        image = random.integers(0, 255, (3, 64, 64), dtype=np.uint8)
        coarse = torch.from_numpy(image).float().reshape(3, 4, 16, 4, 16).mean((2, 4)) / 255
        embedding = torch.cat([coarse, 1 - coarse] * 6)[:32].numpy() * 0.1
        files.append(tmp_path / f"{number}.npz")
        np.savez(files[-1], image=image, embedding=embedding.astype(np.float16))
    network = build(TINY)
    where = choose("cpu", "fp32")
    how = Distillation(slices=4, steps=2, batch=4, warm_up=1)
    before = distil(network, files, CT_FRAMES, how, where, lambda _done, _all: None)
    after = distil(
        network,
        files,
        CT_FRAMES,
        Distillation(slices=4, steps=60, batch=4, warm_up=5, learning_rate=1e-2),
        where,
        lambda _done, _all: None,
    )
    assert after > before + 0.2
