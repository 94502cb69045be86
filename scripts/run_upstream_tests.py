"""MONAI Label's own tests of its endpoints, against this app and against MONAI Label's sample app.

They are part of MONAI Label's repository, not of its package: CHECKOUT is a clone of it. They run against the installed
package, over phantoms named as their data set is; nothing is downloaded, and nothing written into CHECKOUT. Suites of
other sample apps (pathology, bundles) and of a PACS are left out; what needs a GPU returns at once without one.

What fails with the sample app too is not ours. Exit code 0 if every other test passes, or fails for a reason given
here.

Usage: .venv/bin/python scripts/run_upstream_tests.py CHECKOUT [-k WORDS]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TESTS, SAMPLE_APP = Path("tests/unit/endpoints"), Path("sample-apps/radiology")
SUITES = ("BasicEndpointTestSuite", "BasicEndpointV2TestSuite", "BasicEndpointV3TestSuite")
IMAGES = ("spleen_3", "spleen_8", "spleen_9")
APPS = ("polycl", "sample")
APP, STUDIES = "UPSTREAM_TESTS_APP", Path("tests/data/dataset/local/spleen")
OFFLINE = {"use_pretrained_model": "false", "sam2": "false"}
REASONS = {
    "test_model.EndPointModel.test_info": "asks for the sample app's model",
    "test_model.EndPointModel.test_download": "asks for the sample app's model",
    "test_ohif.TestEndPointLogs.test_ohif": "wants OHIF to be absent, which a package has",
    "test_scoring.EndPointScoring.test_dice": "asks for the sample app's scoring method",
    "test_scoring.EndPointScoring.test_epistemic": "asks for the sample app's scoring method",
    "test_scoring.EndPointScoring.test_strategy_epistemic": "asks for the sample app's strategy",
}
"""Tests that fail here, and are to."""
MINUTES = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of MONAI Label's repository")
    parser.add_argument("-k", default="", help="only tests whose names match, as pytest has it")
    asked = parser.parse_args()
    if not (asked.checkout / TESTS / "context.py").is_file():
        parser.error(f"{asked.checkout} has no {TESTS}: give a clone of MONAI Label's repository")
    outcomes = {}
    for app in APPS:
        with tempfile.TemporaryDirectory() as folder:
            outcomes[app] = run(app, asked.checkout, Path(folder), asked.k)
    return report(outcomes["polycl"], outcomes["sample"])


def run(app: str, checkout: Path, folder: Path, words: str) -> dict[str, str]:
    """Why each test failed with this app, by its name; empty for one that passed."""
    shutil.copytree(checkout / "tests", folder / "tests", ignore=shutil.ignore_patterns("data", "downloads"))
    shutil.copytree(checkout / SAMPLE_APP, folder / SAMPLE_APP)
    make_studies(folder / STUDIES)
    found = folder / "results.xml"
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYCL_", "MONAI_LABEL_"))}
    environment = clean | {APP: app, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "pytest", str(TESTS), "-p", Path(__file__).stem, "-q", "-k", words]
    command += ["--rootdir", str(folder), "-c", os.devnull, "--junitxml", str(found), "-p", "no:cacheprovider"]
    print(f"{app}: running", file=sys.stderr)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60 * MINUTES, check=False
    )
    if not found.is_file():
        raise SystemExit(f"the tests did not run with {app}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return {name_of(case): reason_of(case) for case in ElementTree.parse(found).iter("testcase")}


def name_of(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').rpartition('endpoints.')[2]}.{case.get('name')}"


def reason_of(case: ElementTree.Element) -> str:
    """The line on which a test failed."""
    for child in case:
        if child.tag in ("failure", "error"):
            return (child.get("message") or child.tag).strip().splitlines()[0][:120]
    return ""


def report(ours: dict[str, str], theirs: dict[str, str]) -> int:
    """Print what failed where; 1 if a test fails with us alone and for no reason that is known."""
    both = [name for name, reason in ours.items() if reason and theirs.get(name)]
    alone = [name for name, reason in ours.items() if reason and not theirs.get(name)]
    passed = [name for name, reason in ours.items() if not reason]
    counts = f"{len(passed)} pass, {len(both)} fail with the sample app too, {len(alone)} with ours alone"
    print(f"{len(ours)} tests: {counts}")
    for name in both:
        print(f"  fails upstream too: {name}: {ours[name]}")
    unexplained = [name for name in alone if name not in REASONS]
    for name in alone:
        print(f"  fails with ours alone: {name}: {REASONS.get(name) or ours[name]}")
    for name in (name for name in passed if theirs.get(name)):
        print(f"  passes with ours alone: {name}")
    return 1 if unexplained or not ours else 0


def make_studies(folder: Path) -> None:
    """Phantoms under the names that the tests ask for; the first has a final label."""
    from polycl.phantom import make_phantom
    from polycl.volume import write_volume

    (folder / "labels" / "final").mkdir(parents=True)
    for seed, name in enumerate(IMAGES):
        image = make_phantom(seed, shape=(64, 52, 9), spacing=(6.0, 6.0, 20.0)).image
        write_volume(image, folder / f"{name}.nii.gz")
        if seed == 0:
            label = image.with_voxels((image.voxels > 60).astype("uint8"))
            write_volume(label, folder / "labels" / "final" / f"{name}.nii.gz")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a plugin of pytest: keep the suites of the radiology app, and have them make our client."""
    from tests.unit.endpoints import context  # type: ignore[import-untyped, import-not-found, unused-ignore]

    suites = tuple(getattr(context, name) for name in SUITES)
    items[:] = [item for item in items if issubclass(item.cls, suites)]
    stock = context.create_client

    def sample(app: str, studies: str, data: str, conf: dict[str, Any] | None = None) -> Any:
        return stock(app, studies, data, {**(conf or {}), **OFFLINE})

    context.create_client = ours if os.environ[APP] == "polycl" else sample


def ours(app: str, studies: str, data: str, conf: dict[str, Any] | None = None) -> Any:
    """A client of this app over the same studies."""
    from fastapi.testclient import TestClient
    from monailabel.interfaces.utils.app import clear_cache

    from polycl.server import create_app
    from polycl.server.environment import log_to
    from polycl.settings import Settings

    clear_cache()
    settings = Settings(state=Path(data) / "state")
    served = create_app(studies, settings)
    log_to(settings.logs)
    return TestClient(served, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


if __name__ == "__main__":
    sys.exit(main())
