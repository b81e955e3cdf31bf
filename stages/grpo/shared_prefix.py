"""GRPO that computes a prompt and its picture once for the whole group, not once for each completion.

One row `[prompt][completion 1]..[completion G]` replaces G rows `[prompt][completion g]`. Every completion sees the
prompt and itself, through a boolean mask of shape (B, 1, T, T), and continues the prompt's M-RoPE positions as if it
stood alone. The log-probabilities are those of G separate rows; what is saved is G - 1 passes over prompt and picture
in the policy, backwards too, in the reference, and in the processor and vision tower of the rollout. A no-think answer
is some ten tokens behind a prompt of hundreds, so that is nearly all of a step.

Related: Prefix Grouper (arXiv 2506.05433), which does the same for text with two attention calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax, split_tensor_dict


@dataclass(frozen=True)
class SharedRows:
    """Groups laid out one a row: T = P + G * C tokens.

    `input_ids` (B, T); `mask` (B, 1, T, T), true where a query (row) sees a key (column); `predicting` (G * C,): for
    each completion token, in order, the column whose hidden state predicts it.
    """

    input_ids: Tensor
    mask: Tensor
    predicting: Tensor


def share_prefix(prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor) -> SharedRows:
    """Lay B groups out: prompts (B, P), padded on the left; completions (B, G, C), padded on the right; masks of 0 and 1."""
    prompt, (_, group, length) = prompt_ids.shape[1], completion_ids.shape
    real = torch.cat([prompt_mask, completion_mask.flatten(1)], dim=1).bool()
    # which completion a column belongs to; the prompt is -1
    member = torch.full((prompt + group * length,), -1, device=prompt_ids.device)
    member[prompt:] = torch.arange(group, device=prompt_ids.device).repeat_interleave(length)
    column = torch.arange(len(member), device=prompt_ids.device)
    sees = (column[:, None] >= column) & ((member == -1) | (member[:, None] == member))
    # padding sees itself: a query that sees nothing has no softmax, and its NaN would spread through the values
    mask = (sees & real[:, None, :]) | torch.eye(len(member), dtype=torch.bool, device=prompt_ids.device)
    before = column[prompt:].view(group, length) - 1
    before[:, 0] = prompt - 1
    return SharedRows(torch.cat([prompt_ids, completion_ids.flatten(1)], dim=1), mask[:, None], before.flatten())


def continue_positions(prompt_positions: Tensor, group: int, length: int) -> Tensor:
    """M-RoPE positions (3, B, P + G * C): each completion goes on from the prompt's (3, B, P) largest."""
    batch = prompt_positions.shape[1]
    following = prompt_positions.amax(dim=(0, 2))[:, None] + 1 + torch.arange(length, device=prompt_positions.device)
    return torch.cat([prompt_positions, following.repeat(1, group).expand(3, batch, -1)], dim=2)


class SharedPrefixGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer; groups stay whole, and a group's prompt is processed, seen and scored once."""

    _buffered_inputs: list[dict[str, Any]] | None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, without its shuffle, which would take the members of a group apart."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = self._whole_groups(scored, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _whole_groups(self, scored: dict[str, Any], parts: int) -> list[dict[str, Any]]:
        """Cut a generation batch into consecutive micro-batches, pictures with their rows."""
        rows = len(scored["prompt_ids"]) // parts
        images = scored.get("num_images")
        if images is None:
            return split_tensor_dict(scored, parts)
        flat = {key: scored.pop(key) for key in ("pixel_values", "image_grid_thw")}
        cut = split_tensor_dict({key: value for key, value in scored.items() if key != "num_images"}, parts)
        for part, inputs in enumerate(cut):
            inputs["num_images"] = images[part * rows : (part + 1) * rows]
            inputs |= _pictures(flat["pixel_values"], flat["image_grid_thw"], images, range(part * rows, (part + 1) * rows))
        return cut

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Process one prompt a group; its fields are for these alone, ids and images for every member."""
        if not self.model.training:
            return super()._tokenize_prompts(prompts)
        group = self.num_generations
        ids, images, fields = super()._tokenize_prompts(prompts[::group])
        return [row for row in ids for _ in range(group)], images and [row for row in images for _ in range(group)], fields

    def _generate_single_turn(self, prompt_ids: Any, images: Any, fields: Any, num_generations: int, *rest: Any, **more: Any) -> Any:
        """Let `generate` expand each prompt to its group behind the vision tower."""
        if not self.model.training:
            return super()._generate_single_turn(prompt_ids, images, fields, num_generations, *rest, **more)
        group = self.num_generations
        self.generation_config.num_return_sequences = group
        return super()._generate_single_turn(prompt_ids[::group], images and images[::group], fields, num_generations, *rest, **more)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **fields: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Log-probabilities and entropies (N, C) of the completions, N = B * G rows in whole groups."""
        group, rows = self.num_generations, len(input_ids)
        chunk = batch_size or rows
        logps, entropies = [], []
        for start in range(0, rows, chunk):
            first = range(start, min(start + chunk, rows), group)
            ids, real = (values[start : start + chunk].view(len(first), group, -1) for values in (input_ids, attention_mask))
            prompt = ids.shape[2] - logits_to_keep
            shared = share_prefix(ids[:, 0, :prompt], real[:, 0, :prompt], ids[:, :, prompt:], real[:, :, prompt:])
            pictures = _pictures(fields["pixel_values"], fields["image_grid_thw"], fields["num_images"], first)
            backbone = self.accelerator.unwrap_model(model).model
            positions, _ = backbone.get_rope_index(
                ids[:, 0, :prompt],
                fields["mm_token_type_ids"][list(first), :prompt],
                image_grid_thw=pictures["image_grid_thw"],
                attention_mask=real[:, 0, :prompt],
            )
            with self.accelerator.autocast():
                logits = model(
                    input_ids=shared.input_ids,
                    attention_mask=shared.mask,
                    position_ids=continue_positions(positions, group, logits_to_keep),
                    logits_to_keep=shared.predicting,
                    use_cache=False,
                    **pictures,
                ).logits
            logits = logits.float().view(len(first) * group, logits_to_keep, -1) / self.temperature
            logps.append(selective_log_softmax(logits, ids[:, :, prompt:].flatten(0, 1)))
            if compute_entropy:
                entropies.append(entropy_from_logits(logits.detach()))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


def _pictures(pixel_values: Tensor, grid: Tensor, images: list[int], rows: range) -> dict[str, Tensor]:
    """Patches and grids of the pictures of some rows; row i has `images[i]` of them."""
    by_row = torch.split(grid, images)
    patches = torch.split(pixel_values, [int(each.prod(-1).sum()) for each in by_row])
    return {"pixel_values": torch.cat([patches[row] for row in rows]), "image_grid_thw": torch.cat([by_row[row] for row in rows])}
