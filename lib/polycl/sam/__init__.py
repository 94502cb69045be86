"""SAM on CT slices: engines that encode a slice and decode prompts, chosen by name, and a cache of embeddings.

Importing this package is cheap: torch, segment-anything and ONNX Runtime load with the engine that uses them.
"""

from polycl.sam.embeddings import EmbeddingCache, EmbeddingKey, Prefetch, content_hash
from polycl.sam.engine import Embedding, Engine, Masks, Recipe, Sight
from polycl.sam.loading import check_engine, default_engine, load_engine
from polycl.sam.prompts import Prompts, from_image, mask_prompt, slice_image, to_image, to_pixels, to_xy

__all__ = [
    "Embedding",
    "EmbeddingCache",
    "EmbeddingKey",
    "Engine",
    "Masks",
    "Prefetch",
    "Prompts",
    "Recipe",
    "Sight",
    "check_engine",
    "content_hash",
    "default_engine",
    "from_image",
    "load_engine",
    "mask_prompt",
    "slice_image",
    "to_image",
    "to_pixels",
    "to_xy",
]
