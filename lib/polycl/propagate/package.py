"""What is used of the `sam2` package, imported without what it does to Hydra.

Importing it sets Hydra's global configuration up for its own loader, which nothing here uses; code in the process that
sets its own up would then fail. So all of ours imports it from here.
"""

from hydra.core.global_hydra import GlobalHydra

_was_set = GlobalHydra.instance().is_initialized()

from sam2.modeling.backbones.hieradet import Hiera  # noqa: E402
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder  # noqa: E402
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer  # noqa: E402
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder  # noqa: E402
from sam2.modeling.position_encoding import PositionEmbeddingSine  # noqa: E402
from sam2.modeling.sam.transformer import RoPEAttention  # noqa: E402
from sam2.modeling.sam2_base import SAM2Base  # noqa: E402
from sam2.modeling.sam2_utils import get_1d_sine_pe  # noqa: E402

if not _was_set:
    GlobalHydra.instance().clear()

__all__ = [
    "CXBlock",
    "FpnNeck",
    "Fuser",
    "Hiera",
    "ImageEncoder",
    "MaskDownSampler",
    "MemoryAttention",
    "MemoryAttentionLayer",
    "MemoryEncoder",
    "PositionEmbeddingSine",
    "RoPEAttention",
    "SAM2Base",
    "get_1d_sine_pe",
]
