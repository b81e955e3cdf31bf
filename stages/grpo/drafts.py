"""Drafts: likely completions as a trie behind the prompt, computed in the prompt's own pass.

A token of a completion is drawn by inverse CDF with a number that belongs to its prompt, completion
and position (`stages.grpo.rollout`). So a drafted token is right exactly when that draw picks it
from the logits before it, and those of every node of the trie come from one forward pass: what is
sampled is what step-by-step sampling gives, up to the rounding of a pass of another shape.
Completions that leave the trie go on step by step from its cache.

The trie starts with the format of an answer and learns from recent completions. It changes how long
a rollout takes, and no completion: in 32 bits. In 16 bits the two passes round differently often
enough that a draw now and then falls between them and picks another token, as likely as the first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from trl.trainer.utils import entropy_from_logits

from stages.policy.last_layer import narrow_last_layer
from stages.policy.masks import additive, include_diagonal
from stages.policy.prefill import ImageInputs, PromptPass
from stages.policy.prompt_batch import PromptBatch

MAX_DEPTH: Final = 32
"""Tokens from the beginning of a completion that are drafted: later ones are seldom foreseen."""
_RECENT: Final = 256
"""Completions that a trie is made of."""
_MIN_SHARE: Final = 1 / 64
"""Of the recent completions; a rarer beginning costs more in the prompt's pass than it saves."""


@dataclass(frozen=True)
class DraftTrie:
    """Beginnings of completions: N nodes, each a token after its parent.

    Node 0 is the root, the last token of the prompt; node n > 0 has the token `tokens[n - 1]` and
    the parent `parents[n - 1]`, which comes before it. Tokens that end a completion are no nodes:
    nothing follows them.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    def __len__(self) -> int:
        """N, without the root."""
        return len(self.tokens)

    @property
    def depths(self) -> list[int]:
        """Depth of each node, the root's 0 first."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return depths

    @property
    def children(self) -> list[dict[int, int]]:
        """Token -> child of each node, the root first."""
        children: list[dict[int, int]] = [{} for _ in range(len(self) + 1)]
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True), 1):
            children[parent][token] = node
        return children

    def ancestry(self) -> Tensor:
        """(N, N), true where node (row) is or descends from node (column), the root left out."""
        sees = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                sees[node] |= sees[parent - 1]
        return sees


def build_trie(
    completions: Iterable[Sequence[int]], excluded: Iterable[int], max_nodes: int
) -> DraftTrie:
    """The trie of the most frequent beginnings of completions, at most `max_nodes` of them.

    `excluded`: tokens that are no nodes, as they end a completion or are never drawn. Of equally
    frequent beginnings, shorter ones first, then by token id.
    """
    never = set(excluded)
    counts: Counter[tuple[int, ...]] = Counter()
    total = 0
    for completion in completions:
        total += 1
        for length, token in enumerate(completion[:MAX_DEPTH], 1):
            if token in never:
                break
            counts[tuple(completion[:length])] += 1
    frequent = [prefix for prefix, count in counts.items() if count >= total * _MIN_SHARE]
    # a prefix is at least as frequent as what continues it: no node comes before its parent
    frequent.sort(key=lambda prefix: (-counts[prefix], len(prefix), prefix))
    number: dict[tuple[int, ...], int] = {(): 0}
    for prefix in frequent[:max_nodes]:
        number[prefix] = len(number)
    nodes = list(number)[1:]
    return DraftTrie(
        tuple(prefix[-1] for prefix in nodes), tuple(number[prefix[:-1]] for prefix in nodes)
    )


class Drafts:
    """A trie that learns from completions; `recent` is all of its state."""

    def __init__(
        self, seeds: Iterable[Sequence[int]], excluded: Iterable[int], max_nodes: int
    ) -> None:
        """`seeds`: completions that are likely from the start.

        Together they fill a quarter of `recent` at first; completions take their place in time.
        `excluded` and `max_nodes`: see `build_trie`.
        """
        self._excluded = frozenset(excluded)
        self._max_nodes = max_nodes
        likely = [list(seed) for seed in seeds]
        repeats = max(_RECENT // 4 // max(len(likely), 1), 1)
        self.recent: deque[list[int]] = deque(likely * repeats, maxlen=_RECENT)
        self.trie = self._build()

    def learn(self, completions: Iterable[Sequence[int]]) -> None:
        """Add completions, and forget the oldest."""
        self.recent.extend(list(each[: MAX_DEPTH + 1]) for each in completions)
        self.trie = self._build()

    def restore(self, recent: Iterable[Sequence[int]]) -> None:
        """Continue from a saved `recent`."""
        self.recent.clear()
        self.learn(recent)

    def _build(self) -> DraftTrie:
        return build_trie(self.recent, self._excluded, self._max_nodes)


@dataclass(frozen=True)
class DraftPass:
    """Result of a forward pass over B prompts of P tokens with a trie of N nodes behind each.

    `keys_values`: a pair of (B, H, P + N, D) per layer; `logits`: (B, N + 1, V), of the token after
    the root and after each node.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    logits: Tensor
    trie: DraftTrie

    @property
    def prompt_pass(self) -> PromptPass:
        """The pass over the prompts alone."""
        drafted = len(self.trie)
        if not drafted:
            return PromptPass(self.keys_values, self.logits[:, 0])
        pairs = tuple(
            (keys[:, :, :-drafted], values[:, :, :-drafted]) for keys, values in self.keys_values
        )
        return PromptPass(pairs, self.logits[:, 0])

    def detached(self) -> DraftPass:
        """The same pass without gradients, for a rollout."""
        pairs = tuple((keys.detach(), values.detach()) for keys, values in self.keys_values)
        return DraftPass(pairs, self.logits.detach(), self.trie)


def without_drafts(prompt_pass: PromptPass) -> DraftPass:
    """A pass over prompts as one with an empty trie."""
    return DraftPass(prompt_pass.keys_values, prompt_pass.logits[:, None], DraftTrie())


@lru_cache(maxsize=2)  # the trie of the policy's pass, and that of a reference's
def _on_device(trie: DraftTrie, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N,), depths (N,) and ancestry (N, N) of a trie, which seldom changes: copied once."""
    tokens, depths = torch.tensor(trie.tokens), torch.tensor(trie.depths[1:])
    return tokens.to(device), depths.to(device), trie.ancestry().to(device)


def prefill_with_drafts(
    policy: nn.Module, prompts: PromptBatch, image_inputs: ImageInputs, trie: DraftTrie
) -> DraftPass:
    """Run B prompts with their images, and a trie of at least one node behind each."""
    batch, width = prompts.ids.shape
    drafted = len(trie)
    device = prompts.ids.device
    tokens, depths, ancestry = _on_device(trie, device)
    sees = torch.zeros(width + drafted, width + drafted, dtype=torch.bool, device=device)
    sees[:width, :width] = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    sees[width:, :width] = True
    sees[width:, width:] = ancestry
    real = torch.cat([prompts.mask.bool(), prompts.mask.new_ones(batch, drafted).bool()], dim=1)
    with narrow_last_layer(policy, drafted + 1):
        outputs = policy(
            **image_inputs(torch.cat([prompts.ids, tokens.expand(batch, -1)], dim=1)),
            attention_mask=additive(include_diagonal(sees & real[:, None, :])[:, None], policy),
            position_ids=torch.cat(
                [prompts.positions, prompts.positions[:, :, -1:] + depths], dim=2
            ),
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=drafted + 1,
        )
    return DraftPass(
        tuple((layer.keys, layer.values) for layer in outputs.past_key_values.layers),
        outputs.logits[:, -(drafted + 1) :],
        trie,
    )


def score_drafted(
    draft_pass: DraftPass,
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float,
    *,
    entropy: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """Log-probabilities and entropies (B * G, C) of completions (B, G, C), from the pass alone.

    None if a completion leaves the trie before its last token. The padding after a completion has
    the score of a token that is masked anyway.
    """
    batch, group, length = completion_ids.shape
    nodes = nodes_before(draft_pass.trie, completion_ids, completion_mask)
    if None in nodes:
        return None
    index = torch.tensor(nodes, device=completion_ids.device).view(batch, group * length)
    logits = draft_pass.logits.float() / temperature  # (B, N + 1, V)
    rows = torch.arange(batch, device=index.device)[:, None]
    chosen = logits[rows, index, completion_ids.flatten(1)]
    logps = chosen - logits.logsumexp(-1)[rows, index]
    entropies = None
    if entropy:
        of_nodes = entropy_from_logits(logits.detach())
        entropies = of_nodes[rows, index].view(batch * group, length)
    return logps.view(batch * group, length), entropies


def nodes_before(trie: DraftTrie, ids: Tensor, mask: Tensor) -> list[list[int] | None]:
    """The node before each token of the completions (B, G, C), for each; None if one has none.

    The padding after a completion gets the root.
    """
    children = trie.children
    paths: list[list[int] | None] = []
    rows: Any = zip(ids.flatten(0, 1).tolist(), mask.flatten(0, 1).tolist(), strict=True)
    for tokens, real in rows:
        node: int | None = 0
        path: list[int] | None = []
        for token in compress(tokens, real):
            if node is None or path is None:
                path = None
                break
            path.append(node)
            node = children[node].get(token)
        paths.append(None if path is None else [*path, *[0] * (len(tokens) - len(path))])
    return paths
