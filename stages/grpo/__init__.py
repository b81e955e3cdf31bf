"""How a policy learns: prompts, rewards, generation, and the trainer."""
