"""How fast a machine multiplies matrices, so that times on different machines can be compared.

    python -m stages.core.distributed.matrix_product 1       with one CPU thread

Measured with torch, as stages compute with its BLAS, not with numpy's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Final

_CPU_SIZE: Final = 1024
_GPU_SIZE: Final = 8192
_SECONDS: Final = 0.3
"""Least total time of the repeats, of which the fastest counts."""


@dataclass(frozen=True)
class MatrixProductRate:
    """FLOP/s of a product of two `size` x `size` matrices on one device, and how it was measured.

    `threads`: CPU threads; they do not matter on a GPU.
    """

    flops_per_second: float
    size: int
    dtype: str
    device: str
    threads: int

    def __str__(self) -> str:
        """For people: "0.065 TFLOP/s (1024 x 1024 float32 product on cpu, 1 thread)"."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"{self.flops_per_second / 1e12:.3g} TFLOP/s ({self.size} x {self.size} {self.dtype}"
            f" product on {self.device}{f', {threads}' if self.device == 'cpu' else ''})"
        )


def measure_rate(device: str, threads: int) -> MatrixProductRate:
    """Time the product in this process: bfloat16 on the GPU "cuda", float32 on the "cpu"."""
    import torch
    from torch.utils.benchmark import Timer

    on_gpu = device == "cuda"
    size, dtype = (_GPU_SIZE, "bfloat16") if on_gpu else (_CPU_SIZE, "float32")
    matrix = torch.rand(size, size, device=device, dtype=getattr(torch, dtype))
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=threads)
    fastest = min(timer.blocked_autorange(min_run_time=_SECONDS).times)
    return MatrixProductRate(2 * size**3 / fastest, size, dtype, device, threads)


def measure_in_subprocess(threads: int) -> MatrixProductRate | None:
    """The rate of this machine, on its first GPU if torch sees one; None if it cannot be measured.

    For processes that do not import torch, which takes seconds and hundreds of MB.
    """
    process = subprocess.run(
        [sys.executable, "-m", "stages.core.distributed.matrix_product", str(threads)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if process.returncode:
        return None
    return MatrixProductRate(**json.loads(process.stdout))


def main() -> None:
    """Print the rate as JSON."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(json.dumps(asdict(measure_rate(device, int(sys.argv[1])))))


if __name__ == "__main__":
    main()
