"""One optimiser step as a rank: python -m tests.grpo.two_processes FOLDER CASE...

The completions and rewards are given, so that the step is decided by the batch alone; the first
process keeps the weights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from stages.core.distributed.launch import processes
from stages.core.params import Grpo, load_params
from stages.grpo import engine
from stages.grpo.parallel import gather_weights, prepare_deepspeed
from tests.grpo.tiny import REPOSITORY, trainer

PROMPTS, GROUP = 2, 4
SAID: Final = [[300 + row, 40 + row, 50][: 1 + row % 3] for row in range(PROMPTS * GROUP)]
REWARDS: Final = [0.0, 1.0, 2.0, 0.5, 1.0, 0.0, 0.25, 2.0]
LORA: Final = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
CASES: Final[dict[str, dict[str, Any]]] = {
    "shared-prefix": {},
    "two passes": {"reuse_prompt_pass": False, "loss_type": "dapo"},
    "trl": {"engine": "trl"},
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
    prepare_deepspeed(
        Grpo.model_validate(load_params(REPOSITORY / "params.yaml").grpo.model_dump() | settings)
    )
    each = trainer(folder, **settings)
    steer(
        each,
        int(os.environ.get("RANK", "0")) * len(SAID) // processes(),
        alike=case == "no pass without advantage",
    )
    # plain, so that the step is the gradient; DeepSpeed asks for one itself
    optimizer = each.optimizer = torch.optim.SGD(
        [p for p in each.model.parameters() if p.requires_grad], lr=each.args.learning_rate
    )
    each.create_optimizer = lambda *_, **__: optimizer
    each.train()
    whole = gather_weights(each)
    if not each.accelerator.is_main_process:
        return {}
    return {name: value.float().contiguous().clone() for name, value in whole.items()}


def steer(each: Any, first: int, alike: bool) -> None:
    """Make a trainer sample `SAID` from row `first` on and give `REWARDS`."""
    rewards = REWARDS[:GROUP] + [1.0] * GROUP if alike else REWARDS
    words: Iterator[list[int]] = iter((SAID * 3)[first:])
    pool: Iterator[float] = iter((rewards * 3)[first:])
    if each.sharing.engine == "trl":
        each._generate_single_turn = lambda ids, *_, **__: ([next(words) for _ in ids], None)
    else:
        vars(engine)["sample_completions"] = lambda policy, prompts, done, uniform, sampling: [
            next(words) for _ in range(len(prompts) * uniform.shape[1])
        ]
    each.reward_funcs = [lambda completions, **_: [next(pool) for _ in completions]]
    each.reward_func_names, each.reward_weights, each.reward_processing_classes = (
        ["order"],
        torch.ones(1),
        [None],
    )


def main() -> None:
    """Each case in turn; FOLDER/<case>.safetensors."""
    torch.set_num_threads(1)
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    own = folder / os.environ["RANK"]
    own.mkdir()
    for case in cases:
        if weights := step(own, case):
            save_file(weights, folder / f"{case}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
