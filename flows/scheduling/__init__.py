"""Which stage may start: ready set, GPU slots, process guard, durations."""
