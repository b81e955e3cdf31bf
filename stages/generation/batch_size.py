"""Batch size of greedy generation: a fixed number of rows, or as many as fit in GPU memory."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch

from stages.core.errors import InputError

CPU_ROWS: Final = 64
"""`auto` without a GPU: more rows do not make a CPU faster."""
MAX_GPU_ROWS: Final = 512
"""Upper bound of the first estimate of `auto` on a GPU."""
_MEMORY_SHARE: Final = 0.8
"""Share of the free memory that the estimate uses."""


class BatchSize:
    """Number of rows per batch; `auto` halves it when a batch does not fit.

    It never grows again, so the search for a size that fits happens once.
    """

    def __init__(self, setting: int | Literal["auto"], device: torch.device) -> None:
        self.auto = setting == "auto"
        on_gpu = device.type == "cuda"
        self._needs_estimate = self.auto and on_gpu
        self.rows: int
        if setting == "auto":
            self.rows = MAX_GPU_ROWS if on_gpu else CPU_ROWS
        else:
            self.rows = setting

    def estimate(self, policy: Any, prefix: int, suffix: int, answer: int) -> None:
        """On the first call with `auto` on a GPU, start with what fits the memory it may use.

        A row has `prefix` cached tokens, `suffix` new prompt tokens and up to `answer` generated
        ones.
        """
        if not self._needs_estimate:
            return
        self._needs_estimate = False
        free, total = torch.cuda.mem_get_info()
        # of a GPU that stages share, this process may reserve a part only
        allowed = round(torch.cuda.get_per_process_memory_fraction() * total)
        reserved = torch.cuda.memory_reserved()
        # memory that torch has reserved but not allocated is free, too
        free = min(free, allowed - reserved) + reserved - torch.cuda.memory_allocated()
        config = policy.config.get_text_config()
        self.rows = fitting_rows(
            free, row_bytes(config, policy.dtype.itemsize, prefix, suffix, answer)
        )

    def halve(self, error: torch.OutOfMemoryError) -> None:
        """Halve the batch size.

        Raises InputError with the remedy if the size was set by the user or is 1 already.
        """
        cause = str(error).splitlines()[0]
        if not self.auto:
            raise InputError(
                f"out of GPU memory with evaluate.batch_size {self.rows} ({cause}): lower it, or"
                " set it to auto, and re-run the same command to resume: finished answers are saved"
            ) from error
        if self.rows == 1:
            raise InputError(
                f"out of GPU memory with one answer at a time ({cause}): lower"
                " evaluate.max_new_tokens or base.max_pixels, give questions about many images"
                " fewer of them, or free the GPU (`nvidia-smi` shows what else is on it), and"
                " re-run the same command to resume: finished answers are saved"
            ) from error
        self.rows //= 2


def row_bytes(config: Any, itemsize: int, prefix: int, suffix: int, answer: int) -> int:
    """Estimate the peak memory of one row, in bytes.

    Sum of the KV cache of all its tokens, the activations of its new prompt tokens in one layer,
    and its logits in float32.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = config.num_hidden_layers * config.num_key_value_heads
    cache = 2 * kv_heads * head_dim * (prefix + suffix + answer)
    # per token: 8 vectors of the hidden size and 3 of the feed-forward size (gate, up, product)
    activations = suffix * (8 * config.hidden_size + 3 * config.intermediate_size)
    # attention with a mask repeats keys and values for each query head
    repeated = 2 * config.num_attention_heads * head_dim * (prefix + suffix)
    # four copies of the logits at a time, of 4 bytes each
    logits = 4 * 4 * config.vocab_size
    return itemsize * (cache + activations + repeated) + logits


def fitting_rows(free: int, per_row: int) -> int:
    """Largest power of two of rows, of `per_row` bytes, that fit in `free`; up to `MAX_GPU_ROWS`.

    A share of the memory is left unused; the result is at least 1.
    """
    rows = max(min(int(free * _MEMORY_SHARE) // per_row, MAX_GPU_ROWS), 1)
    return int(2 ** (rows.bit_length() - 1))
