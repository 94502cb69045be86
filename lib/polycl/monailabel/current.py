"""The version of a model that is served: switched while the server runs, without a request that fails.

Which version is live is read at each request. A new one is loaded by the first request that comes after the switch;
those under way end with the one that they began with. What cannot be loaded is not switched to: the version that was
served goes on, and at the start its parent takes its place.
"""

import logging
import threading
from dataclasses import dataclass

from polycl.catalogue import Entry
from polycl.errors import ModelError, PolyclError
from polycl.learning.versions import Versions
from polycl.segmenter import Segmenter
from polycl.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A version of a model, ready to use."""

    segmenter: Segmenter
    name: str
    version: int
    sha256: str

    def described(self) -> dict[str, str | int]:
        """What a reply says of the model that made it."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}


class CurrentModel:
    """The live version of the model whose version 0 is `entry`. Safe for several threads."""

    def __init__(self, entry: Entry, settings: Settings) -> None:
        self.entry = entry
        self._settings = settings
        self._versions = Versions(settings.versions, settings.versions_kept)
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._refused: int | None = None

    def labels(self) -> dict[str, int]:
        """Labels of the live version, by its header. ModelError if version 0 has to do, and cannot be used."""
        try:
            return dict(self.entry.at(self._versions.live(self.entry.name), self._versions).header().labels)
        except PolyclError:
            return dict(self.entry.header().labels)

    def get(self) -> Loaded:
        """The version to answer with, loaded if need be. ModelError if there is none that can be used."""
        with self._lock:
            wanted = self._wanted()
            if self._loaded is None or wanted not in (self._loaded.version, self._refused):
                self._loaded = self._switched(wanted)
            return self._loaded

    def _wanted(self) -> int:
        try:
            return self._versions.live(self.entry.name)
        except ModelError as error:
            if self._loaded is None:
                logger.error("%s; version 0 is served", error.in_full())
            return self._loaded.version if self._loaded else 0

    def _switched(self, wanted: int) -> Loaded:
        """Version `wanted`; where that cannot be loaded what is served until now, or its nearest parent that can."""
        number, self._refused = wanted, None
        while True:
            try:
                loaded = self._load(number)
                logger.info("%s is served in version %d", self.entry.name, number)
                return loaded
            except PolyclError as error:
                if number == 0 and self._loaded is None:
                    raise
                logger.error("version %d of %s cannot be used: %s", number, self.entry.name, error.in_full())
                self._refused = wanted
                if self._loaded is not None:
                    return self._loaded
                number = self._parent(number)

    def _load(self, number: int) -> Loaded:
        entry, settings = self.entry.at(number, self._versions), self._settings
        sha256 = entry.verify()
        segmenter = Segmenter.load(entry.path, sha256=sha256, device=settings.device, precision=settings.precision)
        return Loaded(segmenter, entry.name, number, sha256)

    def _parent(self, number: int) -> int:
        try:
            return self._versions.get(self.entry.name, number).parent
        except PolyclError:
            return 0
