"""Rules that the repository itself keeps: its lock, its layout, what it tracks and what its command line loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for part in ("lib", "apps") for path in (ROOT / part).rglob("*.py"))
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_WEIGHTS_BYTES = 16 * 2**20

# Who alone may import a package.
IMPORTERS = {
    "monailabel": ("apps/", "lib/polycl/monailabel/", "lib/polycl/server/"),
    "sam2": ("lib/polycl/sam/", "lib/polycl/propagate/"),
    "segment_anything": ("lib/polycl/sam/",),
    "onnxruntime": ("lib/polycl/sam/", "lib/polycl/propagate/training/"),
}

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".npy", ".npz")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".onnx", ".pkl", ".pickle", ".h5", ".bin")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def lock_lines() -> list[str]:
    return (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()


def locked() -> dict[str, Version]:
    pins = (line.split("==") for line in lock_lines() if line and not line.lstrip().startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pins}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]


def wanted_by_project() -> set[str]:
    """Names that the lock's own comments trace to pyproject.toml."""
    names = set()
    for line in lock_lines():
        if "==" in line:
            name = line.split("==")[0]
        elif line.endswith("polycl (pyproject.toml)"):
            names.add(canonicalize_name(name))
    return names


def test_lock_pins_each_package_and_names_no_address() -> None:
    lines = [line for line in lock_lines() if not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.!]*|    #[^:/]*", line)]
    assert not wrong


def test_lock_satisfies_each_declared_requirement() -> None:
    versions = locked()
    broken = [
        str(requirement)
        for requirement in declared()
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), Version("0")))
    ]
    assert not broken, "run `make lock`"


def test_lock_was_made_from_the_declared_requirements() -> None:
    assert wanted_by_project() == {canonicalize_name(requirement.name) for requirement in declared()}, "run `make lock`"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_and_its_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES
    long = {
        node.name: length
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert not long


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the packages that a module imports, anywhere in it."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", IMPORTERS)
def test_only_its_own_part_imports(package: str) -> None:
    importers = [relative(path) for path in MODULES if package in imported(path)]
    assert [name for name in importers if not name.startswith(IMPORTERS[package])] == []


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["--help"], 0),
        (["segment", "none.nii.gz", "-o", "organ.nii.gz"], 1),
        (["refine", "none.nii.gz", "--mask", "none.nii.gz", "-o", "organ.nii.gz"], 1),
        (["propagate", "none.nii.gz", "--seed", "none.nii.gz", "-o", "organ.nii.gz"], 1),
        (["evaluate", "none.nii.gz", "none.nii.gz"], 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_help_and_a_missing_file_wait_for_no_heavy_package(command: list[str], code: int, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from polycl.cli import main\n"
        f"sys.argv = ['polycl', *{command}]\n"
        f"try:\n    main()\nexcept SystemExit as stop:\n    assert (stop.code or 0) == {code}, stop.code\n"
        "print('loaded:', *sorted({'torch', 'monai', 'monailabel'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert ("no such file" in done.stderr) == bool(code)
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def tracked() -> list[Path]:
    """Files that git tracks or would on the next `git add`."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def test_no_medical_image_is_tracked() -> None:
    assert [relative(path) for path in tracked() if path.name.lower().endswith(IMAGE_SUFFIXES) or is_dicom(path)] == []


def test_weights_are_small_safetensors_in_model() -> None:
    weights = [path for path in tracked() if path.name.lower().endswith(WEIGHT_SUFFIXES)]
    misplaced = [relative(path) for path in weights if path.parent != ROOT / "model" or path.suffix != ".safetensors"]
    assert not misplaced
    assert not [relative(path) for path in weights if path.stat().st_size > MAX_WEIGHTS_BYTES]


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("model/*.md")], ids=relative
)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    files = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [file for file in files if not (path.parent / file).exists()] == []
