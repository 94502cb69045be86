"""Embeddings on disk: a folder bounded in bytes, the least recently used removed first.

Embeddings come from patients' images and belong where the images may be. File names are hashes. The folder is a cache:
what cannot be read is removed and computed again, and a disk that is full costs time, never an answer.
"""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from polycl.files import replacing
from polycl.sam.engine import Embedding

log = logging.getLogger(__name__)

SUFFIX = ".embedding"


class DiskTier:
    """Embeddings by name, in files of safetensors, each whole or not there. Written by one background thread."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder, self.capacity = folder, capacity
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="embeddings-disk")
        self._complained = False

    def read(self, name: str) -> Embedding | None:
        """The embedding called `name`, None if it is not there or damaged."""
        path = self.folder / (name + SUFFIX)
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = json.loads((file.metadata() or {})["embedding"])
                features, *fine = [file.get_tensor(name) for name in ("features", *header["fine"])]
            os.utime(path)  # the least recently used goes first
            return Embedding(features, tuple(header["original"]), tuple(header["resized"]), tuple(fine))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            with suppress(OSError):
                path.unlink()
            return None

    def write(self, name: str, embedding: Embedding) -> None:
        """Keep `embedding` under `name`, some time soon; not after `close`, while the server stops."""
        with suppress(RuntimeError):
            self._writer.submit(self._write, name, embedding)

    def flush(self) -> None:
        """Wait until all that was given to `write` is written."""
        self._writer.submit(lambda: None).result()

    def close(self) -> None:
        """Finish writing and end the thread."""
        self._writer.shutdown()

    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(size for _, size, _ in self._files())

    def _write(self, name: str, embedding: Embedding) -> None:
        path = self.folder / (name + SUFFIX)
        fine = {f"fine{number}": part for number, part in enumerate(embedding.fine)}
        header = json.dumps({"original": embedding.original, "resized": embedding.resized, "fine": list(fine)})
        try:
            if path.exists() or embedding.nbytes > self.capacity:
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(path) as stream:
                stream.write(save({"features": embedding.features} | fine, metadata={"embedding": header}))
            self._trim()
        except OSError as error:
            if not self._complained:
                log.warning("embeddings are not kept on disk: %s", error.strerror)
            self._complained = True

    def _trim(self) -> None:
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - self.capacity
        for _, size, path in files:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path of each file; those that vanish meanwhile are left out."""
        found = []
        for path in self.folder.glob("*" + SUFFIX):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found
