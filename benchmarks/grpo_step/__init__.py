"""One GRPO step three ways, side by side: as Med-R1 computes it, as TRL does, as we do.

`python -m benchmarks.grpo_step -h`.
"""
