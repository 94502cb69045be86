"""What a pre-training run must remember to go on after it was interrupted."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from polycl.checkpoints import Header
from polycl.contrast.health import Monitor
from polycl.contrast.objective import Recipe
from polycl.contrast.views import Views
from polycl.errors import InputError
from polycl.files import write_atomically


def fingerprint(header: Header, recipe: Recipe, views: Views) -> str:
    """The same for two runs that would give the same weights; workers and the saving of state change nothing."""
    data = [*views.store.names], views.store.scan.tobytes().hex(), views.present.tobytes().hex(), views.seed
    augment = asdict(views.augment) if views.augment else None
    same = asdict(replace(recipe, workers=0, save_every=1))
    parts = [same, augment, header.network.model_dump(), header.preprocessing.model_dump(mode="json"), data]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass
class State:
    """Kept in `file` by the first process, and read by all."""

    file: Path
    mark: str
    fabric: Fabric
    network: nn.Module
    optimiser: torch.optim.Optimizer
    monitor: Monitor
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def restore(self) -> None:
        """Take over what an interrupted run left, if it left anything; InputError if it was another run."""
        if not self.file.is_file():
            return
        try:
            kept = torch.load(self.file, weights_only=True, map_location=self.fabric.device)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            raise InputError(f"{self.file} is damaged; remove it to start anew") from None
        if kept.get("mark") != self.mark:
            raise InputError(f"{self.file.name} was left by a run with other options or data; give those or remove it")
        self.network.load_state_dict(kept["network"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.fabric.strategy.precision.load_state_dict(kept["precision"])
        self.step, self.figures = int(kept["step"]), kept["figures"]
        self.monitor.smoothed, self.monitor.looks = kept["monitor"]

    def keep(self) -> None:
        """Write the state, atomically."""
        if not self.fabric.is_global_zero:
            return
        parts = {
            "mark": self.mark,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "figures": self.figures,
            "monitor": (self.monitor.smoothed, self.monitor.looks),
        }
        buffer = io.BytesIO()
        torch.save(parts, buffer)
        write_atomically(self.file, buffer.getvalue())
