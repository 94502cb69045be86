"""A propagation without weights, where the app has none: painted slices, repeated on two slices to each side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from polycl.monailabel.app import PolyclApp
from polycl.monailabel.infer import Runtime
from polycl.volume import read_volume

NAME = "fake-propagation"
REACH = 2


class FakePropagation(InferTask):
    """Takes the painted mask as MONAI Label's clients send scribbles."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(InferType.SCRIBBLES, labels=[], dimension=3, description="", config={"propagates": True})
        self._runtime = runtime

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        drawn = read_volume(request["label"], kind="label")
        name = request["selected_label_name"]
        seed = drawn.voxels == [entry["name"] for entry in request["label_info"]].index(name) + 1
        grown = np.zeros_like(drawn.voxels)
        for index in np.flatnonzero(seed.any(axis=(0, 1))):
            around = slice(max(0, index - REACH), index + REACH + 1)
            grown[:, :, around] |= seed[:, :, index, None]
        path = self._runtime.write(drawn.with_voxels(grown), ".nrrd", compress=False)
        return path, {"label_names": {name: 1}}


def install() -> None:
    """Every app of this process has it, unless it has a propagation of its own."""
    own = PolyclApp.init_infers

    def init_infers(app: PolyclApp) -> dict[str, InferTask]:
        tasks = own(app)
        if any((task.info().get("config") or {}).get("propagates") for task in tasks.values()):
            return tasks
        return tasks | {NAME: FakePropagation(app.runtime)}

    PolyclApp.init_infers = init_infers
