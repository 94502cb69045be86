"""Slices of the studies that people have just opened, embedded before anyone clicks on them.

Concurrency: all work is done by the thread of the embedding cache, which stops for requests; what is here only says
what that thread shall do, and is called by any thread.
"""

import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from polycl.errors import PolyclError
from polycl.monailabel.engines import Engines
from polycl.monailabel.images import VolumeCache
from polycl.sam import Embedding, EmbeddingKey, Prefetch
from polycl.sam.slices import SliceEncoder
from polycl.window import Window

logger = logging.getLogger(__name__)

SOFT_TISSUE = Window.named("soft-tissue")
"""How clicks see an image if they do not say."""
STUDIES = 2
"""Those filled at a time, the last opened first; work on an older one ends when another is opened."""
SHARE = 0.5
"""Of the memory, or disk, that one study may take: the rest is for what others work with."""
View = tuple[int | None, Window]


class Ahead:
    """Fills the cache of embeddings for opened studies, from the middle, or from where the organ is, outwards."""

    def __init__(self, images: VolumeCache, engines: Engines, enabled: bool) -> None:
        self.enabled = enabled
        self._images, self._engines = images, engines
        self._jobs: OrderedDict[Path, tuple[View, Prefetch]] = OrderedDict()
        self._lock = threading.Lock()

    def opened(
        self,
        path: Path,
        near: int | None = None,
        window: Window = SOFT_TISSUE,
        fetch: Callable[[], object] | None = None,
    ) -> None:
        """Someone looks at the study in `path`, at or around its canonical slice `near`, if that is known.

        A study that is known already starts again only for another `near`. `fetch`, if given, brings the file there;
        it may take long, as when a PACS must be asked.
        """
        path = path.absolute()
        if not self.enabled or path.parent == Path(tempfile.gettempdir()):  # sent with the request, gone after it
            return
        with self._lock:
            view, job = self._jobs.pop(path, ((None, window), None))
            if job is None or (near is not None and view != (near, window)):
                if job is not None:
                    job.cancel()
                slices = _Slices(self._images, self._engines, path, (near, window), fetch)
                view = near, window
                job = self._engines.cache.prefetch(slices.keys(), slices.embed, urgent=True, share=SHARE)
            self._jobs[path] = view, job
            while len(self._jobs) > STUDIES:
                self._jobs.popitem(last=False)[1][1].cancel()

    def stop(self) -> None:
        """Compute nothing more; the slice under way is finished."""
        self.enabled = False
        with self._lock:
            for _, job in self._jobs.values():
                job.cancel()


class _Slices:
    """The slices of one study, read when the first is asked for."""

    def __init__(
        self, images: VolumeCache, engines: Engines, path: Path, view: View, fetch: Callable[[], object] | None
    ) -> None:
        self._images, self._engines, self._path, self._view, self._fetch = images, engines, path, view, fetch
        self._encoder: SliceEncoder | None = None

    def keys(self) -> Iterator[EmbeddingKey]:
        """Keys from the first slice outwards; none for a study that cannot be used: who asks for it is told why."""
        near, window = self._view
        try:
            if self._engines.default() is None:
                return
            if self._fetch is not None:
                self._fetch()
            volume = self._images.get(self._path)
            engine = self._engines.named()
            if engine.sight is not None:  # where on a slice it shall look is known with the first click
                return
            self._encoder = SliceEncoder(volume, engine, window, self._engines.cache)
        except (PolyclError, OSError) as error:
            logger.info("a study is not prepared for clicks: %s", type(error).__name__)
            return
        depth = volume.canonical().shape[2]
        first = depth // 2 if near is None else near
        yield from (self._encoder.key(z) for z in (first, *self._encoder.around(first, depth)))

    def embed(self, key: EmbeddingKey) -> Embedding:
        """The embedding of a slice that `keys` gave."""
        assert self._encoder is not None
        return self._encoder.compute(key)
