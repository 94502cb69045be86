"""The networks that propagate, of one app: those whose weights are here, loaded at their first use.

Concurrency: one lock, held while a network loads. Networks take calls from several threads.
"""

import threading
from collections import OrderedDict

from polycl.catalogue import Catalogue
from polycl.errors import ModelError, NotFoundError
from polycl.propagate.engine import VideoEngine
from polycl.propagate.loading import at_hand, load_propagator
from polycl.settings import Settings

MISSING = (
    "this needs the weights of a SAM 2, and the server has none: get some with `polycl models fetch sam2.1-tiny`, "
    "or name a folder that has them in POLYCL_WEIGHTS, and start the server again"
)
LOADED = 2
"""Networks kept loaded; another name or size pushes out the one used longest ago."""


class Propagators:
    """Networks by name and size of frames. Which there are is looked up once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.names = tuple(at_hand(Catalogue.default(settings)))
        self._loaded: OrderedDict[tuple[str, int | None], VideoEngine] = OrderedDict()
        self._lock = threading.Lock()

    def check_name(self, name: str | None) -> None:
        """ModelError if there are none at all; NotFoundError, which names those there are, for another name.

        A client may not name a file of the server.
        """
        if not self.names:
            raise ModelError(MISSING)
        if name is not None and name not in self.names:
            raise NotFoundError(f"no model that propagates is called {name!r}; there are: {', '.join(self.names)}")

    def named(self, name: str | None = None, size: int | None = None) -> VideoEngine:
        """The network called `name`, or the default, for frames of `size` pixels a side, or the usual.

        Raises what `check_name` does, ModelError for altered weights, InputError for a size that does not fit.
        """
        self.check_name(name)
        key = (name or self.names[0], size)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load_propagator(key[0], self._settings, size=size)
            self._loaded.move_to_end(key)
            while len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
            return self._loaded[key]
