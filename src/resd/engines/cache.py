"""A cache of keys and values that grows in place, of which rows can be taken.

transformers' `DynamicCache` copies the keys and values of a layer for each token.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Tokens for which there is room before a layer is copied again.
_ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keys and values [B, H, T, D] at the front of a buffer that has room for more."""

    keys: Any  # None at first, as transformers has it
    values: Any
    _window: int | None = None  # tokens that are kept
    _buffers: tuple[Tensor, ...] = ()
    _end = 0  # of the tokens in the buffers

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, H, N, D]; returns all that the new tokens may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new, old = key_states.shape[-2], self.keys.shape[-2] if self.keys.numel() else 0
        if not self._buffers or self._end + new > self._buffers[0].shape[-2]:
            self._buffers = tuple(
                _moved(kept, states, old + new + _ROOM)
                for kept, states in ((self.keys, key_states), (self.values, value_states))
            )
            self._end = old
        keys, values = self._buffers
        begin, end = self._end - old, self._end + new
        keys[:, :, self._end : end] = key_states
        values[:, :, self._end : end] = value_states
        first = begin if self._window is None else max(begin, end - self._window)
        self._end, self.keys, self.values = end, keys[:, :, first:end], values[:, :, first:end]
        return keys[:, :, begin:end], values[:, :, begin:end]

    def reorder_cache(self, beam_idx: Any) -> None:
        """Take rows, some perhaps several times."""
        super().reorder_cache(beam_idx)
        self._buffers = ()


class GrowingWindow(GrowingLayer, DynamicSlidingWindowLayer):
    """Of a layer that looks at the last tokens only."""

    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window)
        self._window = sliding_window - 1

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As above; counts the tokens that are gone too."""
        self.cumulative_length += key_states.shape[-2]
        return super().update(key_states, value_states)


def _moved(kept: Tensor, new: Tensor, room: int) -> Tensor:
    """A buffer that begins with what is kept."""
    buffer = new.new_empty((*new.shape[:2], room, new.shape[-1]))
    if kept.numel():
        buffer[:, :, : kept.shape[-2]] = kept
    return buffer


def growing_cache(config: Any) -> DynamicCache | None:
    """An empty cache for a model's configuration; None if a layer of it is of no known kind."""
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layer_class_to_replicate = GrowingLayer
    as_they_are = {getattr(cache_utils, "LinearAttentionLayer", None)}
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = cast(Any, GrowingLayer)()
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = GrowingWindow(layer.sliding_window)
        elif type(layer) not in as_they_are:
            return None
    return cache
