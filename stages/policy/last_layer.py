"""The language model's last layer, run only for the tokens whose hidden states are asked for.

Above the last layer nothing attends any more: of a token that predicts nothing it takes the keys
and values alone. Its queries, the output projection and the feed-forward network, 98% of the layer
in Qwen2-VL-2B, would be computed for every token of prompt and image, and their gradients, which
are zeros, with them. That is exact, and one layer in 28 of what a prompt costs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stages.policy.prompt_batch import backbone, recomputes_activations

LAYERS: Final = ("Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer", "Qwen3VLTextDecoderLayer")


@contextmanager
def narrow_last_layer(policy: Any, tokens: int) -> Iterator[bool]:
    """Context manager: the last layer returns only the last `tokens` states (B, tokens, H).

    Gives whether that holds. It does not, and all is as without, where a layer's activations are
    computed again for its gradients, later than this context lasts; where something else has
    replaced the layer's forward; and for other layers than `LAYERS`.
    """
    layer = backbone(policy).language_model.layers[-1]
    if (
        recomputes_activations(policy)
        or "forward" in vars(layer)
        or type(layer).__name__ not in LAYERS
        or not hasattr(_home(layer), "apply_rotary_pos_emb")
    ):
        yield False
        return
    layer.forward = partial(_forward, layer, tokens)
    try:
        yield True
    finally:
        del layer.forward


def _forward(
    layer: Any,
    tokens: int,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = None,
    **more: Any,
) -> Tensor:
    """The layer's forward for the last tokens of (B, T, H), with keys and values of all."""
    attention, home = layer.self_attn, _home(layer)
    cos, sin = position_embeddings
    seen = layer.input_layernorm(hidden_states)
    queries = _heads(attention, "q", seen[:, -tokens:])
    keys, values = _heads(attention, "k", seen), _heads(attention, "v", seen)
    queries, _ = home.apply_rotary_pos_emb(queries, queries, cos[:, -tokens:], sin[:, -tokens:])
    _, keys = home.apply_rotary_pos_emb(keys, keys, cos, sin)
    if past_key_values is not None:
        keys, values = past_key_values.update(keys, values, attention.layer_idx)
    if position_ids is not None:
        more["position_ids"] = position_ids[..., -tokens:]
    if hasattr(attention, "sliding_window"):
        more["sliding_window"] = attention.sliding_window
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, home.eager_attention_forward
    )
    mixed, _ = attend(
        attention,
        queries,
        keys,
        values,
        None if attention_mask is None else attention_mask[:, :, -tokens:],
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        **more,
    )
    kept = hidden_states[:, -tokens:] + attention.o_proj(mixed.flatten(2))
    fed: Tensor = kept + layer.mlp(layer.post_attention_layernorm(kept))
    return fed


def _heads(attention: Any, which: str, states: Tensor) -> Tensor:
    """Queries, keys or values (B, heads, T, D); Qwen3-VL norms the first two."""
    split = getattr(attention, f"{which}_proj")(states).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    return (split if norm is None else norm(split)).transpose(1, 2)


def _home(layer: nn.Module) -> Any:
    """The module that defines a layer, with its rotary embedding and its plain attention."""
    return sys.modules[type(layer).__module__]
