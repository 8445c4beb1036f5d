"""How much of the GPU's matrix rate a picture uses: its floating-point work over its time.

The work of SDXL at 1024 x 1024, counted once for the whole project: UNet 13.52 TFLOP a guided step,
VAE decode 10.5.
"""

from typing import Final

import torch

GUIDED_STEP_TFLOP: Final = 13.52
DECODE_TFLOP: Final = 10.5
SIDE: Final = 8192
REPEATS: Final = 50


def measured_tflops() -> float:
    """The rate of a large float16 matrix product on this GPU, in TFLOP a second."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.float16) for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(5):
        a @ b
    start.record()
    for _ in range(REPEATS):
        a @ b
    end.record()
    end.synchronize()
    seconds: float = start.elapsed_time(end) / 1e3 / REPEATS
    return 2 * SIDE**3 / seconds / 1e12


def share(steps: int, seconds: float, tflops: float) -> float:
    """The part of `tflops` that a guided picture of `steps` steps in `seconds` stands for."""
    return (steps * GUIDED_STEP_TFLOP + DECODE_TFLOP) / seconds / tflops
