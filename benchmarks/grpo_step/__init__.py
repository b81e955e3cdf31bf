"""One GRPO step by three implementations: Med-R1's, TRL's and ours."""
