"""What may keep this installation from working, found before somebody waits for it: `polycl doctor`.

Each check gives findings, a line each: how it is, and what to do. A check that itself fails is a finding too. Nothing
is changed, and nothing is asked of the network but of the addresses that were given.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from polycl.errors import InputError, ModelError, PolyclError
from polycl.room import free_bytes
from polycl.settings import Settings, why_unwritable

Level = Literal["ok", "warn", "fail"]
LOCK = Path(__file__).resolve().parents[2] / "requirements.txt"
LITTLE = 10 << 30
"""Free bytes of a disk, at which to warn."""
INDEX = "datastore_v2.json"


@dataclass(frozen=True)
class Finding:
    """One line. `advice`: what to do, "" where nothing is to be done."""

    check: str
    level: Level
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Asked:
    """What is to be served, and where."""

    settings: Settings
    studies: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000


def examine(asked: Asked) -> Iterator[Finding]:
    """All findings, check by check, as they come."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": python_version,
        "packages": packages,
        "torch": torch_pair,
        "MONAI Label": monai_label,
        "weights": partial(weights, asked.settings),
        "state": partial(state_folder, asked.settings),
        "store": partial(stores, asked.settings, asked.studies),
        "device": partial(device, asked.settings),
        "port": partial(port, asked.host, asked.port),
        "sign-in": partial(sign_in, asked.settings, asked.host),
    }
    if asked.studies is not None and asked.studies.startswith(("http://", "https://")):
        checks["PACS"] = partial(pacs, asked.studies)
    for name, check in checks.items():
        try:
            yield from check()
        except PolyclError as error:
            yield Finding(name, "fail", str(error), error.hint)
        except Exception as error:
            yield Finding(name, "fail", f"this could not be checked: {type(error).__name__}: {error}"[:300])


def python_version() -> Iterator[Finding]:
    """The version that the lock is for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield Finding("python", "ok", version)
    else:
        yield Finding("python", "fail", f"{version}; the packages are locked for 3.11", "run make install with 3.11")


def packages(lock: Path = LOCK) -> Iterator[Finding]:
    """Whether what is installed is what the lock pins; a build's suffix, as +cpu, does not matter.

    What only development needs may be missing, as in the container image.
    """
    if not lock.is_file():
        yield Finding("packages", "warn", "there is no requirements.txt to compare with", "install from a checkout")
        return
    pins = dict(line.split("==") for line in lock.read_text(encoding="utf-8").splitlines() if line[:1].isalnum())
    missing, other, needed = [], [], _needed()
    for name, wanted in pins.items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if found != wanted.partition("+")[0]:
            other.append(f"{name} {found} (locked: {wanted})")
    if needed & set(missing):
        names = ", ".join(sorted(needed & set(missing)))
        yield Finding("packages", "fail", f"not installed: {names}", "run make install")
    if other:
        yield Finding("packages", "warn", f"other versions than locked: {', '.join(other)}", "run make install")
    if not needed & set(missing) and not other:
        without = f"; not here: {', '.join(missing)}, which running does not need" if missing else ""
        yield Finding("packages", "ok", f"{len(pins) - len(missing)} packages as locked{without}")


def torch_pair() -> Iterator[Finding]:
    """torch and torchvision of one source: otherwise an operator of the second is missing when SAM 2 asks for it."""
    advice = "install both from one index, as make install does"
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        yield Finding("torch", "fail", f"torch and torchvision do not fit: {str(error).splitlines()[0]}", advice)
        return
    yield Finding("torch", "ok", f"torch {torch.__version__} and torchvision {torchvision.__version__} fit")


def monai_label() -> Iterator[Finding]:
    """Whether it can be imported; with other versions of pydicom and dicomweb-client than locked it cannot."""
    try:
        import polycl.monailabel.app  # noqa: F401
    except ImportError as error:
        yield Finding("MONAI Label", "fail", f"it cannot be imported: {error}", "run make install")
        return
    yield Finding("MONAI Label", "ok", f"{importlib.metadata.version('monailabel')} can be imported")


def weights(settings: Settings) -> Iterator[Finding]:
    """Each model's files against the sums in the catalogue, in the version that is live."""
    from polycl.catalogue import Catalogue

    catalogue = Catalogue.default(settings)
    good, absent = [], []
    for name in catalogue.names():
        try:
            if name in catalogue.engines():
                engine = catalogue.engine(name, None)
                if not engine.here():
                    absent.append(name)
                    continue
                engine.verify()
            else:
                entry = catalogue.entry(name)
                entry.verify()
                entry.described()
            good.append(name)
        except ModelError as error:
            yield Finding("weights", "fail", str(error), error.hint or f"see polycl models show {name}")
    if good:
        yield Finding("weights", "ok", f"as listed: {', '.join(good)}")
    if not catalogue.names("segmenter"):
        yield Finding("weights", "fail", "there is no segmenter", "name a folder that has one in POLYCL_WEIGHTS")
    if absent:
        usable = any(catalogue.engine(name, None).here() for name in catalogue.engines("sam"))
        usable = usable or any(catalogue.entry(name).kind == "sam2" for name in good if name not in catalogue.engines())
        without = "" if usable else "; without any there are no clicks and no refinement"
        smallest = min(absent, key=lambda name: sum(file.limit for file in catalogue.engine(name, None).listing.files))
        advice = f"polycl models fetch {smallest}, if it is wanted"
        yield Finding("weights", "ok" if usable else "warn", f"not fetched: {', '.join(absent)}{without}", advice)


def state_folder(settings: Settings) -> Iterator[Finding]:
    """Whether it can be written, and how much room there is."""
    folder = settings.state
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (reason := why_unwritable(there)) is not None:
        advice = "set POLYCL_STATE to a folder that can be"
        yield Finding("state", "fail", f"the state folder {folder} cannot be written ({reason})", advice)
        return
    yield Finding("state", "ok", str(folder) if there == folder else f"{folder} will be made at the first start")
    yield from _room("state", there, int(settings.disk_reserve))


def stores(settings: Settings, studies: str | None) -> Iterator[Finding]:
    """The folder to serve, and those in the state folder: writable, room on its disk, indices readable."""
    folders = [index.parent for index in sorted(settings.store.rglob(INDEX))] if settings.store.is_dir() else []
    if studies is not None and not studies.startswith(("http://", "https://")):
        from polycl.monailabel.folders import check_store, has_images

        folder = Path(studies).expanduser().resolve()
        check_store(folder)
        what = "holds images" if has_images(folder) else "holds no NIfTI or NRRD; DICOM in it is imported at the start"
        yield Finding("store", "ok", f"{folder} can be written and {what}")
        yield from _room("store", folder, int(settings.disk_reserve))
        folders.append(folder)
    damaged = [folder for folder in folders if not _legible(folder / INDEX)]
    for folder in damaged:
        advice = "nothing to do: the next start puts it aside and makes it anew from the labels"
        yield Finding("store", "warn", f"the index of {folder} is damaged", advice)
    if folders and not damaged:
        yield Finding("store", "ok", f"indices of {len(folders)} stores can be read")


def device(settings: Settings) -> Iterator[Finding]:
    """What networks compute on, in which precision."""
    import torch

    from polycl.devices import choose

    where = choose(settings.device, settings.precision)
    if where.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(where.device)
        name = torch.cuda.get_device_name(where.device)
        room = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        few = free < 2 << 30
        advice = "end what else uses the GPU" if few else ""
        yield Finding("device", "warn" if few else "ok", f"{name}, {where.precision}, {room}", advice)
        return
    threads = f"CPU, {where.precision}, {torch.get_num_threads()} threads"
    if settings.device == "auto" and shutil.which("nvidia-smi") and torch.version.cuda is None:
        advice = "install torch for CUDA"
        yield Finding("device", "warn", f"{threads}; there is an NVIDIA driver, but this torch is for CPUs", advice)
    elif where.precision == "fp32":
        yield Finding("device", "ok", f"{threads}: this processor does not compute in bf16, which would be faster")
    else:
        yield Finding("device", "ok", threads)


def port(host: str, number: int) -> Iterator[Finding]:
    """Whether the server can listen there, or one of ours does already."""
    from polycl.server.run import bind

    try:
        bind(host, number).close()
    except InputError as error:
        if _answers(host, number):
            yield Finding("port", "warn", f"a server answers at port {number} of {host} already", "stop it first")
        else:
            yield Finding("port", "fail", str(error), "choose another with --port")
        return
    yield Finding("port", "ok", f"{host}:{number} is free")


def sign_in(settings: Settings, host: str) -> Iterator[Finding]:
    """Who has to sign in, and whether the provider that says who somebody is can be asked."""
    from polycl.accounts import Accounts, Role
    from polycl.server.authority import Provider
    from polycl.server.exposure import check_exposure, must_sign_in

    check_exposure(host, settings, insecure_public=False)
    if settings.oidc_issuer:
        Provider(settings).discovered()
        yield Finding("sign-in", "ok", f"by {settings.oidc_issuer}")
    elif must_sign_in(settings):
        users = Accounts(settings.users).all().values()
        admins = sum(user.role == str(Role.ADMIN) for user in users)
        advice = "" if admins else "polycl users add NAME --role admin"
        said = f"{len(users)} users, {admins or 'no'} admin"
        yield Finding("sign-in", "ok" if admins else "warn", said, advice)
    else:
        yield Finding("sign-in", "ok", f"nobody signs in; only this machine reaches {host}")


def pacs(url: str) -> Iterator[Finding]:
    """Whether it answers a search, to the account of `MONAI_LABEL_DICOMWEB_USERNAME`."""
    from polycl.monailabel.pacs_client import connect, reason_of

    try:
        found = connect(url).search_for_studies(limit=1)
    except PolyclError:
        raise
    except Exception as error:  # parsing what a stranger answered raises nearly anything
        status = getattr(getattr(error, "response", None), "status_code", 0)
        advice = "check the address, as http://pacs:8042/dicom-web, and that the PACS runs"
        if status in (401, 403, 407):
            advice = "set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD to an account there"
        yield Finding("PACS", "fail", reason_of(error), advice)
        return
    yield Finding("PACS", "ok", "it answers a search" if found else "it answers a search; it has no studies")


def _needed() -> set[str]:
    """Names of what this package asks for itself, in the lock's spelling."""
    lines = [line for line in importlib.metadata.requires("polycl") or [] if "extra ==" not in line]
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in lines}


def _answers(host: str, number: int) -> bool:
    import httpx

    name = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    try:
        return bool(httpx.get(f"http://{name}:{number}/healthz", timeout=2).json() == {"status": "ok"})
    except (httpx.HTTPError, ValueError):
        return False


def _room(check: str, folder: Path, reserve: int) -> Iterator[Finding]:
    free = free_bytes(folder)
    level: Level = "fail" if free < reserve else "warn" if free < max(LITTLE, 2 * reserve) else "ok"
    advice = "" if level == "ok" else f"make room: below {reserve / 2**30:g} GiB (POLYCL_DISK_RESERVE) nothing is saved"
    yield Finding(check, level, f"{free / 2**30:.1f} GiB free on its disk", advice)


def _legible(index: Path) -> bool:
    """Whether an index, if there is one, can be read."""
    try:
        return isinstance(json.loads(index.read_bytes()), dict)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
