"""Weights out of an ONNX file, without a library for it: the parts of its protocol buffer that hold them.

An export names what it kept as it was (biases, convolutions, embeddings) as the network had it. The matrices of linear
layers come without a name, transposed; the bias that is added next tells which layer it was.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polycl.errors import ModelError

Array = NDArray[np.float32]
Field = tuple[int, int, int | memoryview]
FLOAT = 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
GRAPH = 7
NODE, INITIALIZER = 1, 5
DIMS, DATA_TYPE, FLOATS, TENSOR_NAME, RAW = 1, 2, 4, 8, 9
INPUTS, OUTPUTS, OPERATOR = 1, 2, 4


@dataclass(frozen=True)
class Node:
    """One operation of the graph."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Float weights by name, and the operations in order."""

    weights: dict[str, Array]
    nodes: tuple[Node, ...]

    def linear_weights(self) -> dict[str, Array]:
        """Matrices `[out, in]` of linear layers: the bias `NAME.bias` that is added tells that one is `NAME.weight`."""
        products = {node.outputs[0]: node.inputs[1] for node in self.nodes if node.operator == "MatMul"}
        found = {}
        for node in self.nodes:
            if node.operator != "Add":
                continue
            bias = next((name for name in node.inputs if name.endswith(".bias")), None)
            product = next((name for name in node.inputs if name in products), None)
            if bias and product and products[product] in self.weights:
                found[bias.removesuffix("bias") + "weight"] = self.weights[products[product]].T
        return found


def read_graph(path: Path) -> Graph:
    """The weights and operations of an ONNX file; ModelError if it is none, or keeps its weights elsewhere."""
    try:
        content = memoryview(path.read_bytes())
        graph = next(
            value for number, _, value in _fields(content) if number == GRAPH and isinstance(value, memoryview)
        )
        weights: dict[str, Array] = {}
        nodes = []
        for number, _, value in _fields(graph):
            if number == INITIALIZER and isinstance(value, memoryview):
                name, array = _tensor(value)
                if array is not None:
                    weights[name] = array
            elif number == NODE and isinstance(value, memoryview):
                nodes.append(_node(value))
    except (OSError, StopIteration, IndexError, ValueError, UnicodeDecodeError):
        raise ModelError(f"{path.name} is no ONNX file, or a damaged one") from None
    if not weights:
        raise ModelError(f"{path.name} holds no weights")
    return Graph(weights, tuple(nodes))


def _fields(content: memoryview) -> Iterator[Field]:
    """Number, wire type and value of each field of a message."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _varint(content, place)
            yield number, kind, value
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(kind)
        if length is None:
            if kind != BYTES:
                raise ValueError(kind)
            length, place = _varint(content, place)
        yield number, kind, content[place : place + length]
        place += length


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


def _tensor(content: memoryview) -> tuple[str, Array | None]:
    """Name and values; None for what is not float32."""
    name, kind, dims = "", 0, list[int]()
    values: memoryview | None = None
    for number, wire, value in _fields(content):
        if number == DIMS and isinstance(value, int):
            dims.append(value)
        elif number == DIMS and isinstance(value, memoryview):
            place = 0
            while place < len(value):
                size, place = _varint(value, place)
                dims.append(size)
        elif number == DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number in (RAW, FLOATS) and wire == BYTES and isinstance(value, memoryview):
            values = value
    if kind != FLOAT or values is None:
        return name, None
    return name, np.frombuffer(values, np.float32).reshape(dims)


def _node(content: memoryview) -> Node:
    parts: dict[int, list[str]] = {INPUTS: [], OUTPUTS: [], OPERATOR: []}
    for number, _, value in _fields(content):
        if number in parts and isinstance(value, memoryview):
            parts[number].append(bytes(value).decode())
    return Node("".join(parts[OPERATOR]), tuple(parts[INPUTS]), tuple(parts[OUTPUTS]))
