"""Where the figures of a run go besides the terminal: TensorBoard, MLflow. Both are imported only when asked for."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from polycl.errors import InputError


class Tracker(Protocol):
    """Takes the figures of a step, and is closed at the end."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


OpenTracker = Callable[[], Tracker]
"""Opens a tracker; called in the first process only."""


class TensorBoard:
    """Event files in `folder`."""

    def __init__(self, folder: Path) -> None:
        try:
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError:
            raise InputError("TensorBoard is not installed here; install the package tensorboard") from None
        try:
            self._writer: Any = writer(str(folder))
        except OSError as error:
            raise InputError(f"cannot write TensorBoard logs to {folder}: {error.strerror}") from None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Mlflow:
    """A run of the experiment `polycl-pretrain` on a tracking server, or in `mlflow.db` of a folder.

    Args:
        where: a URI with `://`, or a folder.
        parameters: what the run was started with.
    """

    def __init__(self, where: str, parameters: Mapping[str, object]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing of a hospital's machine goes out
        try:
            mlflow = importlib.import_module("mlflow")
        except ImportError:
            raise InputError("MLflow is not installed here; install the package mlflow") from None
        self._metric: Any = importlib.import_module("mlflow.entities").Metric
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=_uri(where))
            experiment = self._client.get_experiment_by_name("polycl-pretrain")
            found = experiment.experiment_id if experiment else self._client.create_experiment("polycl-pretrain")
            self._run: str = self._client.create_run(found).info.run_id
        except mlflow.exceptions.MlflowException as error:
            raise InputError(f"MLflow at {where} cannot be used: {error}") from None
        for name, value in parameters.items():
            self._client.log_param(self._run, name, value)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in figures.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _uri(where: str) -> str:
    if "://" in where:
        return where
    folder = Path(where).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {folder}: {error.strerror}") from None
    return f"sqlite:///{folder / 'mlflow.db'}"
