"""A throw-away PACS with sample studies: Debian's Orthanc on the loopback interface, its data in a temporary folder.

Prints the addresses, and runs until Ctrl-C; then everything is removed. The studies are phantoms: two patients, one of
them with two series, with slices numbered upwards and downwards. Needs Debian's orthanc and orthanc-dicomweb.

Usage: .venv/bin/python scripts/throwaway_pacs.py [--port 8042] [--empty]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc/plugins")
MISSING = f"needs Orthanc and its plugin {PLUGIN} (Debian: orthanc, orthanc-dicomweb)"
SECONDS_TO_START = 60
SHAPE, SPACING = (192, 160, 48), (2.1, 2.1, 6.5)


def installed() -> tuple[str, Path] | None:
    """The program and the DICOMweb plugin; None where either is missing."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    program = shutil.which("Orthanc", path=folders) or shutil.which("orthanc", path=folders)
    plugin = next((file for folder in PLUGIN_FOLDERS if (file := Path(folder, PLUGIN)).is_file()), None)
    return None if program is None or plugin is None else (program, plugin)


def configuration(folder: Path, port: int, plugin: Path) -> dict[str, Any]:
    """Settings of an Orthanc that keeps what it gets below `folder` and answers this machine only.

    It cannot listen on the loopback interface alone; it refuses requests from elsewhere.
    """
    return {
        "Name": "throw-away",
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def fill(root: str, folder: Path) -> None:
    """Put the sample studies into the Orthanc at `root`; their files are made in `folder`."""
    from polycl.phantom import make_phantom, write_dicom_series

    for seed, series, decreasing in ((0, 1, False), (0, 2, True), (1, 1, True)):
        image = make_phantom(seed, shape=SHAPE, spacing=SPACING).image
        part = folder / f"{seed}_{series}"
        for file in write_dicom_series(image, part, seed=seed, series=series, decreasing=decreasing):
            with urlopen(Request(f"{root}/instances", data=file.read_bytes(), method="POST")) as answer:
                answer.read()
        shutil.rmtree(part)


def answers(root: str, child: subprocess.Popen[bytes]) -> bool:
    """Wait until the Orthanc answers; False if it ends, or takes too long."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and child.poll() is None:
        try:
            with urlopen(f"{root}/dicom-web/studies"):
                return True
        except (URLError, ConnectionError):
            time.sleep(0.1)
    return False


def main() -> int:
    """Run until Ctrl-C. Exit code 1, with one line, where it cannot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8042)
    parser.add_argument("--empty", action="store_true", help="without sample studies")
    options = parser.parse_args()
    found = installed()
    if found is None:
        print(f"make pacs: {MISSING}", file=sys.stderr)
        return 1
    program, plugin = found
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    root = f"http://127.0.0.1:{options.port}"
    with tempfile.TemporaryDirectory(prefix="polycl-pacs-") as name:
        folder = Path(name)
        (folder / "orthanc.json").write_text(json.dumps(configuration(folder, options.port, plugin)))
        with (folder / "output.txt").open("wb") as output:
            child = subprocess.Popen([program, "orthanc.json"], cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            if not answers(root, child):
                last = (folder / "output.txt").read_text(errors="replace").strip().splitlines()[-1:]
                print(f"make pacs: Orthanc did not start on port {options.port}: {' '.join(last)}", file=sys.stderr)
                return 1
            if not options.empty:
                fill(root, folder)
            print(f"PACS at {root}/dicom-web, in {folder} until Ctrl-C. In another terminal:")
            print(f"  make serve STUDIES={root}/dicom-web")
            print("  then open http://127.0.0.1:8000/ohif/", flush=True)
            child.wait()
        except KeyboardInterrupt:
            print("stopped; what it held is gone")
        finally:
            child.terminate()
            child.wait(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
