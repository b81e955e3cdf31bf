"""One optimiser step by two ranks: python -m tests.grpo.two_processes FOLDER CASE...

Completions and rewards are fixed, so the batch alone decides the step; rank 0 saves the weights.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from stages.core.distributed.launch import processes
from stages.grpo import engine, shared_prefix
from stages.grpo.parallel import gather_weights, prepare_deepspeed
from stages.grpo.rollout import Sampled
from tests.grpo.tiny import (
    embedded_policy,
    grpo_settings,
    processor,
    questions_about_several,
    set_rewards,
    tiny_trainer,
)

PROMPTS: Final = 2
GROUP: Final = 4
COMPLETIONS: Final = [[300 + row, 40 + row, 50][: 1 + row % 3] for row in range(PROMPTS * GROUP)]
SHORT: Final = [ids[:2] for ids in COMPLETIONS[:GROUP]] + COMPLETIONS[GROUP:]
REWARDS: Final = [0.0, 1.0, 2.0, 0.5, 1.0, 0.0, 0.25, 2.0]
LORA: Final = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
CASES: Final[dict[str, dict[str, Any]]] = {
    "shared-prefix": {},
    # all completions are in the trie: no pass but that over the prompts
    "drafted": {},
    # those of the second rank are not, so both ranks make one more
    "drafted on one rank": {},
    "two passes": {"reuse_prompt_pass": False, "loss_type": "dapo"},
    # those of the first rank would fit into one row, those of the second do not
    "unequal lengths": {"reuse_prompt_pass": False},
    # the first rank's prompt has three images, the second's one
    "several images": {"reuse_prompt_pass": False},
    "trl": {"engine": "trl"},
    "trl, several images": {"engine": "trl"},
    "trl, loss of tokens": {"engine": "trl", "loss_type": "dapo"},
    "checkpointing": {"gradient_checkpointing": True, "reuse_prompt_pass": False},
    "frozen tower": {"freeze_vision_tower": True, "vision_cache_mb": 10},
    "adapter": {"lora": LORA},
    "no pass without advantage": {
        "beta": 0.0,
        "skip_zero_advantage": True,
        "reuse_prompt_pass": False,
    },
    "bfloat16": {"bf16": True},
    "zero2, drafted": {"parallel": "zero2"},
    "zero2, drafted on one rank": {"parallel": "zero2"},
    "zero2": {"parallel": "zero2", "reuse_prompt_pass": False},
    "zero3": {"parallel": "zero3", "reuse_prompt_pass": False},
    "zero3, trl": {"parallel": "zero3", "engine": "trl"},
    "zero2, bfloat16": {"parallel": "zero2", "reuse_prompt_pass": False, "bf16": True},
    "zero3, bfloat16": {"parallel": "zero3", "reuse_prompt_pass": False, "bf16": True},
}


def step(folder: Path, case: str) -> dict[str, torch.Tensor]:
    """Weights after one SGD step on the same two prompts, over one or two ranks; {} on rank 1."""
    settings = {
        "prompts_per_device": PROMPTS // processes(),
        "learning_rate": 0.1,
        "max_grad_norm": 1e9,
    } | CASES[case]
    if processes() == 1:
        settings["parallel"] = "none"
    prepare_deepspeed(grpo_settings(**settings))
    rows = questions_about_several(folder, (3, 1)) if case.endswith("several images") else None
    trainer = tiny_trainer(folder, rows=rows, **settings)
    rank = int(os.environ.get("RANK", "0"))
    first = rank * len(COMPLETIONS) // processes()
    steer(trainer, first, case)
    if "drafted" in case:
        seen = COMPLETIONS[:GROUP] if case.endswith("one rank") else COMPLETIONS
        trainer._drafts.restore(seen)
        trainer._drafts.learn = lambda _: None
    if case == "unequal lengths":
        vars(shared_prefix)["PACK_MAX_TOKENS"] = 2 * GROUP
    passes: list[None] = []
    trainer.model.register_forward_pre_hook(lambda *_: passes.append(None))
    # plain SGD makes the step the gradient; DeepSpeed calls create_optimizer itself
    optimizer = trainer.optimizer = torch.optim.SGD(
        [p for p in trainer.model.parameters() if p.requires_grad], lr=trainer.args.learning_rate
    )
    trainer.create_optimizer = lambda *_, **__: optimizer
    trainer.train()
    counts = trainer.accelerator.gather(torch.tensor([len(passes)]))
    assert len(set(counts.tolist())) == 1, f"passes of the ranks, each a collective: {counts}"
    if "drafted" in case:
        assert len(passes) == (2 if case.endswith("one rank") else 1)
    weights = gather_weights(trainer)
    if not trainer.accelerator.is_main_process:
        return {}
    return {name: value.float().contiguous().clone() for name, value in weights.items()}


def steer(trainer: Any, first: int, case: str) -> None:
    """Make a trainer sample a case's completions from row `first` on, with its rewards."""
    rewards = REWARDS
    if case == "no pass without advantage":
        rewards = REWARDS[:GROUP] + [1.0] * GROUP
    rows = SHORT if case == "unequal lengths" else COMPLETIONS
    completions: Iterator[list[int]] = iter((rows * 3)[first:])
    pool: Iterator[float] = iter((rewards * 3)[first:])
    if trainer.engine_options.engine == "trl":
        trainer._generate_single_turn = lambda ids, *_, **__: (
            [next(completions) for _ in ids],
            None,
        )
    else:
        vars(engine)["sample_drafted"] = lambda policy, prompts, draft_pass, uniform, _, **__: (
            Sampled([next(completions) for _ in range(len(prompts) * uniform.shape[1])])
        )
    set_rewards(trainer, lambda completions, **_: [next(pool) for _ in completions])


def main() -> None:
    """Run each case on two ranks: rank 0 writes FOLDER/<case>.safetensors.

    The ranks are forks, so that all is imported once; tests/stages starts trainings as users do.
    """
    processor()
    embedded_policy()
    gc.freeze()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (store.port, Path(sys.argv[1]), sys.argv[2:])
    start_processes(run_rank, arguments, nprocs=2, start_method="fork")


def run_rank(rank: int, port: int, folder: Path, cases: list[str]) -> None:
    """Run each case as a rank, in a folder of its own."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the parent's
    }
    torch.set_num_threads(1)
    own = folder / str(rank)
    own.mkdir()
    for case in cases:
        if weights := step(own, case):
            save_file(weights, folder / f"{case}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
