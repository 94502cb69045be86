"""Writing a DICOM SEG, and reading it back: seconds, file size, peak memory, in a process of its own for each.

The series has 300 slices of 512 x 512 in 300 files. Its five labels are on every slice, so that the SEG has 1,500
frames, the most it can have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from polycl.phantom import write_dicom_series
from polycl.settings import Settings
from polycl.volume import Volume, write_volume

SHAPE, SPACING, LABELS = (512, 512, 300), (0.8, 0.8, 1.5), 5
GOAL_SECONDS, GOAL_MIB = 5.0, 1024
NAMES = ("liver", "spleen", "left kidney", "right kidney", "aorta")

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
start = time.perf_counter()
from polycl.dicomseg import Identity, Segment, SourceSeries, read_seg, write_seg
from polycl.volume import read_volume
what, folder, names = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
source = SourceSeries.read(folder / "ct")
if what == "write":
    label = read_volume(folder / "label.nrrd", kind="label")
    segments = [Segment(name, value) for value, name in enumerate(names, start=1)]
    write_seg(label, segments, source, folder / "seg.dcm", Identity.of("bench"))
else:
    read_seg(folder / "seg.dcm", source)
seconds, processor = time.perf_counter() - start, time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "processor_seconds": processor, "mib": peak}))
"""


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a table and return the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        label = blocks()
        write_dicom_series(label.with_voxels(label.voxels.astype(np.int16) * 20), folder / "ct", seed=0)
        write_volume(label, folder / "label.nrrd", compress=False)
        rows = {what: _measure(what, folder) for what in ("write", "read")}
        mib = (folder / "seg.dcm").stat().st_size / (1 << 20)
    print(f"DICOM SEG of {' x '.join(map(str, SHAPE))} with {LABELS} labels on every slice, {mib:.0f} MiB")  # noqa: T201
    for what, row in rows.items():
        goal = f" (goal {GOAL_SECONDS:.0f} s, {GOAL_MIB} MiB)" if what == "write" else ""
        print(  # noqa: T201
            f"  {what}: {row['seconds']:.1f} s, of a processor {row['processor_seconds']:.1f} s; "
            f"peak memory {row['mib']:.0f} MiB{goal}"
        )
    return {"shape": SHAPE, "labels": LABELS, "file_mib": mib, **rows}


def blocks() -> Volume:
    """A label map of five upright discs side by side, on an axial grid in DICOM's order."""
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    plane = np.zeros(SHAPE[:2], np.uint8)
    for value in range(1, LABELS + 1):
        plane[(x - 85 * value) ** 2 + (y - 256) ** 2 < 40**2] = value
    voxels = np.empty(SHAPE, np.uint8, order="F")
    voxels[...] = plane[:, :, None]
    return Volume(voxels, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0]))


def _measure(what: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-c", PROGRAM, what, str(folder), json.dumps(NAMES)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(answer.stdout))
