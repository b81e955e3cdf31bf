"""How many rows a policy answers together: so many, or as many as the memory of a GPU holds."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch

from stages.core.errors import InputError

ON_CPU: Final = 64
"""`auto` where there is no GPU: more rows make a CPU no faster."""
MOST: Final = 512
"""`auto` begins with no more than this on a GPU."""
_SHARE: Final = 0.8
"""Of the free memory that an estimate gives away."""


class BatchSize:
    """A number of rows, which `auto` halves when they do not fit; it never grows again, so that it
    is found once.
    """

    def __init__(self, setting: int | Literal["auto"], device: torch.device) -> None:
        self.auto = setting == "auto"
        on_gpu = device.type == "cuda"
        self.rows: int = (MOST if on_gpu else ON_CPU) if setting == "auto" else setting
        self._to_be_estimated = self.auto and on_gpu

    def estimate(self, policy: Any, before: int, words: int, answer: int) -> None:
        """The first time on a GPU: begin with what fits its free memory, for rows of so many tokens
        before, in and behind the words.
        """
        if self._to_be_estimated:
            self._to_be_estimated = False
            free = (
                torch.cuda.mem_get_info()[0]
                + torch.cuda.memory_reserved()
                - torch.cuda.memory_allocated()
            )
            self.rows = fitting_rows(
                free,
                row_bytes(
                    policy.config.get_text_config(), policy.dtype.itemsize, before, words, answer
                ),
            )

    def halve(self, error: torch.OutOfMemoryError) -> None:
        """Half as many; InputError, with the remedy, for a number that was given or that is 1
        already.
        """
        said = str(error).splitlines()[0]
        if not self.auto:
            raise InputError(
                f"out of GPU memory with evaluate.batch_size {self.rows} ({said}): lower it, or set"
                " it to auto. What was answered is kept"
            ) from error
        if self.rows == 1:
            raise InputError(
                f"out of GPU memory with one answer at a time ({said}): lower"
                " evaluate.max_new_tokens or base.max_pixels, or free the GPU; `nvidia-smi` shows"
                " what else is on it. What was answered is kept"
            ) from error
        self.rows = max(self.rows // 2, 1)


def row_bytes(config: Any, itemsize: int, before: int, words: int, answer: int) -> int:
    """About what one row takes at its peak: keys and values to its end, activations of its words in
    one layer, logits in float32.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    held = (
        2 * config.num_hidden_layers * config.num_key_value_heads * head * (before + words + answer)
    )
    # attention under a mask repeats keys and values for each of its heads
    passing = words * (
        8 * config.hidden_size + 3 * config.intermediate_size
    ) + 2 * config.num_attention_heads * head * (before + words)
    return itemsize * (held + passing) + 4 * 4 * config.vocab_size


def fitting_rows(free: int, one: int) -> int:
    """The largest power of two, up to `MOST`, of rows of `one` byte count that leaves some of the
    `free` bytes.
    """
    return 1 << max(min(int(free * _SHARE) // one, MOST), 1).bit_length() - 1
