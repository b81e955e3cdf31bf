"""Launch a training on several GPUs: devices, ranks, supervision."""
