"""SAM 2's network by a typed configuration: the official sizes, and the small one for CT.

The `sam2` package describes its networks in Hydra files, which are global state. Here the same classes are built
directly, with the numbers of the official files (SAM 2.1), so that the official weights fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from polycl.checkpoints import Typed
from polycl.errors import InputError

if TYPE_CHECKING:
    from polycl.propagate.package import SAM2Base

STRIDE = 16
"""Pixels of the image for one step of the features that memory works on."""
MULTIPLE = 32
"""The sides of an image are multiples of it: the encoder halves five times."""
Stages = tuple[int, int, int, int]


class TrunkConfig(Typed):
    """The image encoder, a Hiera: four stages, each of half the resolution and twice the width of the one before."""

    width: int = Field(default=96, gt=0, description="channels of the first stage")
    heads: int = Field(default=1, gt=0, description="attention heads of the first stage")
    blocks: Stages = (1, 2, 7, 2)
    windows: Stages = Field(default=(8, 4, 14, 7), description="side of the attention windows of each stage")
    global_blocks: tuple[int, ...] = Field(default=(5, 7, 9), description="blocks that attend to the whole image")
    background: tuple[int, int] = Field(default=(7, 7), description="size of the stored position embedding")


class ConvolutionalTrunkConfig(Typed):
    """The image encoder of a small network: four stages of residual convolutions."""

    widths: Stages = Field(default=(32, 64, 128, 256), description="channels of each stage")
    layers: Stages = Field(default=(2, 2, 2, 2), description="residual blocks of each stage")


class Sam2Config(Typed):
    """All that shapes the network. `image_size` shapes no weight: the same weights serve every size.

    The other choices of SAM 2.1 (object pointers, scores of presence, mask input used as output ...) are fixed.
    """

    image_size: int = Field(default=1024, gt=0, description="side of the square image, pixels")
    trunk: TrunkConfig | ConvolutionalTrunkConfig = TrunkConfig()
    width: int = Field(default=256, gt=0, multiple_of=32, description="channels of features and tokens")
    memory_width: int = Field(default=64, gt=0, description="channels of a memory")
    attention_layers: int = Field(default=4, gt=0)
    attention_hidden: int = Field(default=2048, gt=0, description="hidden units of a layer of memory attention")
    fuser_layers: int = Field(default=2, gt=0, description="blocks that make a memory of a slice and its mask")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="in memory attention, while it is trained")
    memories: int = Field(default=7, ge=2, description="slices remembered: one seed and the last ones before")
    pointers: int = Field(default=16, ge=2, description="object pointers remembered")
    previous_mask: bool = Field(
        default=False, description="the mask of the slice before prompts the decoder, beside the memories"
    )
    tracking_masks: Literal[1, 3] = Field(default=3, description="masks to choose from on a slice without a prompt")

    @model_validator(mode="after")
    def _fits(self) -> Sam2Config:
        if self.image_size % MULTIPLE:
            raise InputError(f"an image size of {self.image_size} does not fit SAM 2; a multiple of {MULTIPLE} does")
        if isinstance(self.trunk, TrunkConfig):
            starts = {sum(self.trunk.blocks[:n]) for n in (1, 2, 3)}
            if found := starts & set(self.trunk.global_blocks):
                raise InputError(f"block {min(found)} halves the image: it needs a window, and cannot be a global one")
        if self.width % self.memory_width:
            raise InputError("the width of a memory must divide the width of the features")
        return self

    def at(self, image_size: int) -> Sam2Config:
        """The same network for images of another size; InputError for a size that is no multiple of 32."""
        return Sam2Config.model_validate(self.model_dump() | {"image_size": image_size})

    @property
    def grid(self) -> int:
        """Side of the feature grid that memory works on."""
        return self.image_size // STRIDE


_LARGE_WINDOWS: Stages = (8, 4, 16, 8)

ARCHITECTURES: dict[str, Sam2Config] = {
    "tiny": Sam2Config(),
    "small": Sam2Config(trunk=TrunkConfig(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13))),
    "base+": Sam2Config(
        trunk=TrunkConfig(width=112, heads=2, blocks=(2, 3, 16, 3), global_blocks=(12, 16, 20), background=(14, 14))
    ),
    "large": Sam2Config(
        trunk=TrunkConfig(width=144, heads=2, blocks=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=_LARGE_WINDOWS)
    ),
    # Convolutions, because on a CPU they train five times faster than a Hiera; few channels where pixels are many; the
    # width of SAM, whose prompts and decoder it starts from; one mask, because the seed says which.
    "ct": Sam2Config(
        image_size=256,
        trunk=ConvolutionalTrunkConfig(widths=(24, 56, 128, 240), layers=(1, 2, 3, 1)),
        width=256,
        memory_width=64,
        attention_layers=1,
        attention_hidden=256,
        fuser_layers=1,
        dropout=0.0,
        memories=3,
        pointers=3,
        previous_mask=True,
        tracking_masks=1,
    ),
}
"""Configurations by name. `ct` is ours: under 8 million parameters, 16 MB in half precision."""


def arguments(config: Sam2Config) -> dict[str, Any]:
    """What `SAM2Base` and its subclasses take to build the network: modules with new weights, and options."""
    return {
        "image_encoder": _image_encoder(config),
        "memory_attention": _memory_attention(config),
        "memory_encoder": _memory_encoder(config),
        "num_maskmem": config.memories,
        "image_size": config.image_size,
        "backbone_stride": STRIDE,
        "sigmoid_scale_for_mem_enc": 20.0,
        "sigmoid_bias_for_mem_enc": -10.0,
        "binarize_mask_from_pts_for_mem_enc": True,
        "use_mask_input_as_output_without_sam": True,
        "directly_add_no_mem_embed": True,
        "no_obj_embed_spatial": True,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": True,
        "iou_prediction_use_sigmoid": True,
        "use_obj_ptrs_in_encoder": True,
        "max_obj_ptrs_in_encoder": config.pointers,
        "add_tpos_enc_to_obj_ptrs": True,
        "proj_tpos_enc_in_obj_ptrs": True,
        "use_signed_tpos_enc_to_obj_ptrs": True,
        "only_obj_ptrs_in_the_past_for_eval": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "fixed_no_obj_ptr": True,
        "multimask_output_for_tracking": config.tracking_masks > 1,
        "use_multimask_token_for_obj_ptr": True,
        "multimask_min_pt_num": 0 if config.tracking_masks > 1 else 1,
        "multimask_max_pt_num": 1,
        "use_mlp_for_obj_ptr_proj": True,
        # What the package's own loader of video predictors adds to its files.
        "sam_mask_decoder_extra_args": {
            "dynamic_multimask_via_stability": config.tracking_masks > 1,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    }


def build(config: Sam2Config) -> SAM2Base:
    """The network with new weights (of torch's random state), in training mode, on the CPU."""
    from polycl.propagate.package import SAM2Base

    return SAM2Base(**arguments(config))


def _position(width: int) -> Any:
    from polycl.propagate.package import PositionEmbeddingSine

    return PositionEmbeddingSine(num_pos_feats=width, normalize=True, scale=None, temperature=10000)


def _image_encoder(config: Sam2Config) -> Any:
    from polycl.propagate.package import FpnNeck, ImageEncoder

    trunk = _trunk(config.trunk)
    neck = FpnNeck(
        position_encoding=_position(config.width),
        d_model=config.width,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _trunk(config: TrunkConfig | ConvolutionalTrunkConfig) -> Any:
    if isinstance(config, ConvolutionalTrunkConfig):
        from polycl.propagate.trunk import ConvolutionalTrunk

        return ConvolutionalTrunk(config.widths, config.layers)
    from polycl.propagate.package import Hiera

    return Hiera(
        embed_dim=config.width,
        num_heads=config.heads,
        stages=config.blocks,
        window_spec=config.windows,
        global_att_blocks=config.global_blocks,
        window_pos_embed_bkg_spatial_size=config.background,
    )


def _memory_attention(config: Sam2Config) -> Any:
    from polycl.propagate.package import MemoryAttention, MemoryAttentionLayer, RoPEAttention

    shared: dict[str, Any] = {
        "rope_theta": 10000.0,
        "feat_sizes": (config.grid, config.grid),
        "embedding_dim": config.width,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": config.dropout,
    }
    layer = MemoryAttentionLayer(
        activation="relu",
        d_model=config.width,
        dim_feedforward=config.attention_hidden,
        dropout=config.dropout,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=RoPEAttention(**shared),
        cross_attention=RoPEAttention(**shared, rope_k_repeat=True, kv_in_dim=config.memory_width),
    )
    return MemoryAttention(d_model=config.width, pos_enc_at_input=True, layer=layer, num_layers=config.attention_layers)


def _memory_encoder(config: Sam2Config) -> Any:
    from polycl.propagate.package import CXBlock, Fuser, MaskDownSampler, MemoryEncoder

    block = CXBlock(dim=config.width, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    return MemoryEncoder(
        out_dim=config.memory_width,
        in_dim=config.width,
        mask_downsampler=MaskDownSampler(embed_dim=config.width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(block, num_layers=config.fuser_layers),
        position_encoding=_position(config.memory_width),
    )
