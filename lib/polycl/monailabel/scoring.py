"""What `polycl.acquisition` needs to know of a running app: its images, its live model, and when nobody waits."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from polycl.acquisition.ahead import Image, Model, ScoresAhead
from polycl.errors import NotFoundError
from polycl.leases import Leases
from polycl.monailabel.infer import Runtime, SegmentTask
from polycl.monailabel.store import IndexedStore
from polycl.settings import PREFIX, Settings
from polycl.volume import Volume, read_volume


def scores_of(runtime: Runtime, segmenters: dict[str, SegmentTask], store: Callable[[], IndexedStore]) -> ScoresAhead:
    """Scores of the store's images by the segmenter that the settings name, or the first.

    NotFoundError if there is no such segmenter.
    """
    settings = runtime.settings
    name = settings.score_model or next(iter(segmenters), "")
    if name not in segmenters and settings.score_model:
        known = ", ".join(segmenters) or "none"
        raise NotFoundError(f"{PREFIX}SCORE_MODEL={name!r}: no such segmenter is served; there are: {known}")

    def model() -> Model | None:
        if name not in segmenters:
            return None
        live = segmenters[name].model()
        return Model(live.segmenter, live.sha256, f"{live.name}@{live.version}")

    def read(path: Path) -> Volume:
        return read_volume(path, max_voxels=settings.max_voxels)

    return ScoresAhead(
        settings.acquisition / "scores",
        images=lambda: images_of(store()),
        model=model,
        read=read,
        idle=runtime.engines.cache.wait_until_idle,
    )


def images_of(store: IndexedStore) -> list[Image]:
    """The images that lie in the store's folder, labelled or not. Nothing is fetched from a PACS for this."""
    found = []
    for name in IndexedStore.list_images(store):
        path = store.library.image(name)
        if path is None:
            continue
        record = store.library.record(name)
        if record is None or record.source == "model":
            found.append(Image(name, path, labelled=record is None and store.library.file(name) is not None))
        else:
            masks = [record.known_slices(label) for label in record.known]
            known = np.any(masks, axis=0) if masks else np.zeros(record.shape[2], dtype=bool)
            found.append(Image(name, path, labelled=True, known=known))
    return found


def leases_of(settings: Settings, store: str) -> Leases:
    """The leases on the images of a folder or PACS."""
    digest = hashlib.sha256(store.encode(errors="surrogateescape")).hexdigest()[:12]
    return Leases(settings.acquisition / f"leases-{digest}.json", settings.lease_minutes)
