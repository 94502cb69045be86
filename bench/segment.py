"""Segmenting a volume: seconds, slices a second, the share of this machine's matrix-product peak, memory.

The volume is a 300-slice phantom of 256 x 256 pixels at 1.5 mm, so that the network sees each slice as it is. The peak
is measured here, in the same run and precision. The network's arithmetic is counted by torch's FLOP counter on the
network as defined; the time of its calls is taken from outside, and what remains of the run is the rest.
"""

from __future__ import annotations

import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from polycl import devices
from polycl.catalogue import Catalogue
from polycl.phantom import make_phantom
from polycl.segmenter import Segmenter
from polycl.segmenter.network import SegmentationNetwork
from polycl.settings import Settings
from polycl.volume import read_volume, write_volume

SHAPE, SPACING = (256, 256, 300), (1.5, 1.5, 1.5)
MODEL = "polycl-liver"


def run(settings: Settings) -> dict[str, Any]:
    """Measure in each precision this machine has; prints a table and returns the figures."""
    native = devices.choose(settings.device)
    precisions = sorted({"fp32", native.precision})
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "phantom.nii.gz"
        write_volume(make_phantom(0, shape=SHAPE, spacing=SPACING).image, image)
        rows = [measure(settings, image, precision) for precision in precisions]
    machine = {
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(native.device) if native.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(f"segment {SHAPE[2]} slices of {SHAPE[0]} x {SHAPE[1]}, {machine}")  # noqa: T201
    for row in rows:
        print(  # noqa: T201
            f"  {row['precision']}: {row['seconds']:.2f} s, {row['slices_per_second']:.1f} slices/s; "
            f"network {row['network_gflops']:.0f} of {row['peak_gflops']:.0f} GFLOP/s, "
            f"{row['share_of_peak']:.0%} of the peak; "
            f"the rest {row['rest_share']:.0%} of the time; peak memory {row['peak_memory_mib']:.0f} MiB"
        )
    return {"machine": machine, "rows": rows}


def measure(settings: Settings, image: Path, precision: str) -> dict[str, Any]:
    """File to file with a warm model, as the server does it, the best of three."""
    entry = Catalogue.default(settings).entry(MODEL)
    segmenter = Segmenter.load(entry.path, sha256=entry.sha256, device=settings.device, precision=precision)
    timed = _TimedCalls(segmenter.logits)
    segmenter.logits = timed  # type: ignore[method-assign]
    output = image.with_name("result.nii.gz")
    peak = devices.matrix_product_peak(segmenter.where)
    runs = []
    for _ in range(3):
        timed.seconds = 0.0
        start = time.perf_counter()
        write_volume(segmenter.segment(read_volume(image), crop=False), output)
        runs.append((time.perf_counter() - start, timed.seconds))
        peak = max(peak, devices.matrix_product_peak(segmenter.where))
    total, network = min(runs)
    achieved = SHAPE[2] * _flop_per_slice(segmenter) / network
    return {
        "precision": precision,
        "seconds": total,
        "slices_per_second": SHAPE[2] / total,
        "network_gflops": achieved / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": achieved / peak,
        "rest_share": 1 - network / total,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class _TimedCalls:
    def __init__(self, function: Any) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        result = self.function(slices)
        if result.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return result


def _flop_per_slice(segmenter: Segmenter) -> float:
    network = SegmentationNetwork(segmenter.header.network).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, SHAPE[0], SHAPE[1]))
    return float(counter.get_total_flops())
