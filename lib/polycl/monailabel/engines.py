"""The SAM engines of one app: loaded once, at their first use, with one cache of embeddings for clicks and refinement.

Concurrency: a lock for loading only. Engines and the cache take calls from several threads; see `polycl.sam`.
"""

import threading
from collections.abc import Collection
from typing import Any

from polycl.catalogue import Catalogue
from polycl.errors import ModelError
from polycl.monailabel.propagators import Propagators
from polycl.propagate.engine import VideoEngine
from polycl.propagate.loading import DEFAULT, if_usable
from polycl.refinement import RefineParameters, refine
from polycl.refinement.stage import Progress
from polycl.sam import EmbeddingCache, Engine, check_engine, default_engine, load_engine
from polycl.sam.loading import SAM2
from polycl.settings import Settings
from polycl.volume import Volume

MISSING = (
    "this needs the weights of a SAM model, and the server has none: get some with `polycl models fetch`, "
    "or name a folder that has them in POLYCL_WEIGHTS, and start the server again"
)


class Engines:
    """Engines by name, and the embeddings they made."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        disk = settings.cache / "embeddings" if settings.embedding_disk else None
        self.cache = EmbeddingCache(settings.embedding_memory, disk, disk_capacity=settings.embedding_disk)
        self.propagators = Propagators(settings)
        self._loaded: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def default(self) -> str | None:
        """The engine to use where a request names none; None if no weights are here."""
        return default_engine(self.settings)

    def windowed(self) -> bool:
        """Whether the default engine sees slices through a window of choice; a SAM 2 has those of its training."""
        return self.default() not in (None, *Catalogue.default(self.settings).names(SAM2))

    def named(self, name: str | None = None) -> Engine:
        """The engine called `name`, or the default.

        NotFoundError if there is no such engine, ModelError if its weights, or those of any, are missing or altered.
        """
        name = name or self.default()
        if name is None:
            raise ModelError(MISSING)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_engine(name, self.settings)
            return self._loaded[name]

    def follower(self, how: RefineParameters) -> VideoEngine | None:
        """What follows ragged labels through the plane: the SAM 2 that ships.

        None where that is not wanted, or its weights cannot be used.
        """
        if how.follow is None or DEFAULT not in self.propagators.names:
            return None
        return if_usable(self.propagators.named)

    def check_name(self, name: str) -> None:
        """NotFoundError unless there is an engine called `name`, whether its weights are here or not."""
        check_engine(name, self.settings)

    def refined(
        self,
        image: Volume,
        mask: Volume,
        name: str,
        how: RefineParameters,
        progress: Progress | None = None,
        labels: Collection[int] | None = None,
    ) -> tuple[Volume, dict[str, Any]]:
        """`mask` refined by the engine called `name`, and what the reply says; without weights as it is, and why."""
        try:
            engine = self.named(name)
        except ModelError as error:
            return mask, {"refined": False, "reason": str(error)}
        try:
            follower = self.follower(how)
            result, report = refine(image, mask, engine, self.cache, how, progress, labels=labels, follower=follower)
        except MemoryError:
            return mask, {"refined": False, "reason": "there was not enough memory to refine"}
        return result, {"refined": True, "refinement": report.as_dict()}
