"""SAM 2's memory attention on the modules of the `sam2` package, in an order of operations that suits a CPU.

At 1024² it is most of what a slice costs, nearly all of it products of matrices. In bf16 torch's
own fused attention converts to fp32 on a CPU; plain products of blocks of rows run in bf16 and take half the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from polycl.propagate.package import MemoryAttention, RoPEAttention

BLOCK = 1 << 21
"""Weights of attention computed at a time: a block of rows that stays in the processor's cache."""


def prepare(module: MemoryAttention, dtype: torch.dtype) -> None:
    """Let `module`, in place, compute its products in `dtype` and all else in fp32."""
    for layer in module.layers:
        for part in (layer.self_attn, layer.cross_attn_image, layer.linear1, layer.linear2):
            part.to(dtype)


def read(
    module: MemoryAttention,
    current: torch.Tensor,
    position: torch.Tensor,
    memory: torch.Tensor,
    memory_position: torch.Tensor,
    pointers: int,
    absent: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `module` makes of a slice's features given memories, float32.

    Args:
        module: as `prepare` left it, in evaluation mode.
        current: features of the slices, float32 [B, N, C].
        position: where its pixels are, [1, N, C].
        memory: memories of pixels and then `pointers` tokens of pointers, [B, M, C_memory].
        memory_position: where those are, of the same shape.
        pointers: tokens at the end that have no place in the image.
        absent: tokens of `memory` that are none, bool [B, M]; None if there are no such.
    """
    dtype = module.layers[0].linear1.weight.dtype
    keys, values = (memory + memory_position).to(dtype), memory.to(dtype)
    out = current + 0.1 * position if module.pos_enc_at_input else current
    for layer in module.layers:
        inner = layer.norm1(out).to(dtype)
        out = out + _rotary(layer.self_attn, inner, inner, inner, 0)
        out = out + _rotary(layer.cross_attn_image, layer.norm2(out).to(dtype), keys, values, pointers, absent)
        inner = layer.linear1(layer.norm3(out).to(dtype))
        out = out + layer.linear2(layer.activation(inner)).float()
    result: torch.Tensor = module.norm(out)
    return result


def _rotary(
    module: RoPEAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    unplaced: int,
    absent: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention of `module`, which has one head, with rotary positions on all but the last `unplaced` keys."""
    turns = module.freqs_cis = module.freqs_cis.to(query.device)
    query, key = module.q_proj(query), module.k_proj(key)
    _turn(query, turns)
    _turn(key[:, : key.shape[1] - unplaced], turns)
    result: torch.Tensor = module.out_proj(attend(query, key, module.v_proj(value), absent)).float()
    return result


def _turn(tokens: torch.Tensor, turns: torch.Tensor) -> None:
    """Turn tokens [B, R * N, C] by `turns` [N, C / 2], complex, in place: the same for each of R images, one by one."""
    for image in torch.split(tokens, len(turns), dim=1):
        pairs = torch.view_as_complex(torch.unflatten(image.float(), -1, (-1, 2)))
        image.copy_(torch.view_as_real(pairs * turns).flatten(-2))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, absent: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention of [B, N, C] on [B, M, C], but for what of that is `absent`, bool [B, M]."""
    if query.is_cuda or query.dtype == torch.float32:
        mask = None if absent is None else ~absent[:, None, None]
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], attn_mask=mask)[:, 0]
    scaled, turned = query * query.shape[-1] ** -0.5, key.transpose(1, 2)
    rows = max(32, BLOCK // (len(query) * key.shape[1]))
    parts = []
    for part in scaled.split(rows, 1):
        weights = torch.bmm(part, turned)
        if absent is not None:
            weights.masked_fill_(absent[:, None], float("-inf"))
        parts.append(torch.bmm(weights.softmax(dim=-1), value))
    return torch.cat(parts, 1)
