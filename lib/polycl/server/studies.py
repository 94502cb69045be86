"""What `--studies` means: a folder of images, a folder of DICOM, a DICOMweb address, or nothing."""

import hashlib
import logging
from pathlib import Path

from polycl.errors import InputError
from polycl.monailabel.folders import check_store, has_images
from polycl.server.imports import Progress, import_studies
from polycl.settings import Settings

logger = logging.getLogger(__name__)

SAMPLE_SEEDS = (0,)


def open_studies(studies: str | Path | None, settings: Settings, progress: Progress | None = None) -> str:
    """The folder or address to give to MONAI Label.

    A folder with images is used as it is, and labels are saved under it. DICOM is imported to a folder of the state
    folder. None stands for the sample study there. InputError if nothing can be made of `studies`.
    """
    if studies is None:
        return str(_sample(settings))
    if str(studies).startswith(("http://", "https://")):
        return str(studies)
    folder = Path(studies).expanduser().resolve()
    if folder.is_dir() and not has_images(folder) and any(folder.iterdir()) and not (folder / "labels").is_dir():
        return str(_imported(folder, settings, progress))
    check_store(folder)
    return str(folder)


def import_store(folder: Path, settings: Settings) -> Path:
    """Where the DICOM series of `folder` are kept as NIfTI, with the labels saved for them."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return settings.store / f"dicom-{digest}"


def _imported(folder: Path, settings: Settings, progress: Progress | None) -> Path:
    store = import_store(folder, settings)
    report = import_studies(folder, store, progress)
    for uid, reason in report.refused.items():
        logger.warning("series %s was not imported: it %s", uid, reason)
    if not report.imported and not report.present:
        uid, reason = next(iter(report.refused.items()))
        raise InputError(f"no series in {folder} can be used; the first, {uid}, {reason}")
    return store


def _sample(settings: Settings) -> Path:
    store = settings.store / "sample"
    if not (store.is_dir() and has_images(store)):
        from polycl.phantom import write_study

        write_study(store, SAMPLE_SEEDS)
    return store
