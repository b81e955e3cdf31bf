"""The policy model: loading, attention, KV cache, prefill, vision features, weights."""
