"""`polycl bench`: the measurements in `bench/` of this checkout."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polycl.cli import options
from polycl.errors import NotFoundError

if TYPE_CHECKING:
    from types import ModuleType

    from polycl.settings import Settings

BENCHES = Path(__file__).resolve().parents[3] / "bench"


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Measurements to run; all if not given.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file as well.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="How long those last that last as long as they are told to.")
    ] = None,
    device: options.Device = None,
) -> None:
    """Measure this machine and what the models do on it. Prints a table a measurement."""
    known = sorted(file.stem for file in BENCHES.glob("*.py") if not file.stem.startswith("_"))
    chosen = names or known
    if unknown := [name for name in chosen if name not in known]:
        raise NotFoundError(f"no bench is called {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    settings = options.settings(device)
    figures = {name: _run(_load(name), settings, minutes) for name in chosen}
    if json_file is not None:
        import json

        from polycl.files import write_atomically

        write_atomically(json_file, (json.dumps(figures, indent=2) + "\n").encode())


def _run(module: ModuleType, settings: Settings, minutes: float | None) -> dict[str, Any]:
    lasts = minutes is not None and "minutes" in inspect.signature(module.run).parameters
    figures: dict[str, Any] = module.run(settings, minutes=minutes) if lasts else module.run(settings)
    return figures


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"polycl_bench_{name}", BENCHES / f"{name}.py")
    if spec is None or spec.loader is None:
        raise NotFoundError(f"bench {name} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks itself up there
    spec.loader.exec_module(module)
    return module
