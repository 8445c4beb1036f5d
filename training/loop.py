"""The loop every stage trains in: a budget of minutes, checkpoints, a bar and a loss curve.

A stage hands it a function that returns a loss.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.training_utils import EMAModel
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from training import distributed

CHECKPOINT_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train. `minutes` counts over all resumed runs together."""

    minutes: float
    learning_rate: float
    weight_decay: float = 0.01
    warmup_steps: int = 200
    ema: float = 0.0


class Loop:
    """Train `model` (a module, or a dict of them) for a budget of minutes; resumable.

    The learning rate warms up over steps and then falls with a cosine over the budget's time.
    `ema` keeps an average of the weights, which `averaged` swaps in for export.
    """

    def __init__(self, name: str, model: nn.Module, budget: Budget, out: Path) -> None:
        self.name, self.model, self.budget = name, model, budget
        self.checkpoint = out / f"{name}.pt"
        self.curve = out / f"{name}.png"
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=budget.learning_rate,
            weight_decay=budget.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.step = 0
        self.seconds = self._since = 0.0
        self.losses: list[float] = []
        self.average = EMAModel(self.parameters, decay=budget.ema) if budget.ema else None
        out.mkdir(parents=True, exist_ok=True)
        distributed.join()
        if self.checkpoint.exists():
            self._load(torch.load(self.checkpoint, weights_only=True))

    def run(self, loss: Callable[[int], Tensor]) -> None:
        """Call `loss(number)` and learn from it until the budget is used up.

        No number comes twice, in all processes together.
        """
        total = self.budget.minutes * 60
        saved = self._since = time.monotonic()
        bar = tqdm(
            total=round(total),
            initial=round(self.seconds),
            desc=self.name,
            unit="s",
            mininterval=10,
            disable=distributed.rank() > 0,
        )
        while self.seconds < total:
            number = self.step * distributed.size() + distributed.rank()
            self._learn(loss(number), self.seconds / total)
            bar.n = min(bar.total, round(self.seconds))
            recent = self.losses[-100:]
            bar.set_postfix(step=self.step, loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            bar.update(0)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def _learn(self, loss: Tensor, progress: float) -> None:
        # The optimizer's own steps: after `training.restore` it begins anew, the stage does not.
        taken = self.optimizer.state[self.parameters[0]].get("step", 0)
        rate = self.budget.learning_rate * min(1.0, (int(taken) + 1) / self.budget.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        reported = torch.tensor([loss.item(), self.seconds])
        distributed.mean([p.grad for p in self.parameters if p.grad is not None] + [reported])
        self.seconds = reported[1].item()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        self.losses.append(reported[0].item())
        if self.average:
            self.average.step(self.parameters)

    def averaged(self) -> None:
        """Put the averaged weights into the model, for good."""
        if self.average:
            self.average.copy_to(self.parameters)

    def restart_average(self) -> None:
        """Average from the weights as they are now."""
        if self.average:
            self.average.shadow_params = [p.detach().clone() for p in self.parameters]

    def save(self) -> None:
        """Write the checkpoint and the loss curve."""
        if distributed.rank() > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.shadow_params if self.average else [],
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        write_checkpoint(self.checkpoint, state)
        draw_curve(self.losses, self.curve, self.name)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.step, self.seconds = state["step"], state["seconds"]
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.shadow_params = state["average"]
            self.average.optimization_step = self.step
        self.losses = state["losses"]


def autocast() -> torch.autocast:
    """Run networks in bfloat16 where this CPU multiplies it: 0.6 to 0.8 of float32's time.

    Weights, losses and the optimizer stay in float32.
    """
    # There is no public name for the question.
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def draw_curve(losses: list[float], path: Path, title: str) -> None:
    """Draw the losses, each the mean of a hundredth of the run, as a picture."""
    width = max(1, len(losses) // 100)
    means = [sum(losses[i : i + width]) / width for i in range(0, len(losses) - width + 1, width)]
    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    axes.plot([i * width for i in range(len(means))], means)
    axes.set(
        xlabel="step",
        ylabel="loss",
        title=title,
        yscale="log" if min(means, default=1) > 0 else "linear",
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def arguments(description: str | None, minutes: float) -> argparse.Namespace:
    """Read what every stage takes: `--minutes`, `--out` and `--seed`."""
    return stage_parser(description, minutes).parse_args()


def stage_parser(description: str | None, minutes: float) -> argparse.ArgumentParser:
    """Make the parser of `arguments`, for a stage that takes more than these."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=minutes, help="in all, resumed or not")
    parser.add_argument("--out", type=Path, default=Path("work"), help="checkpoints and curves")
    parser.add_argument("--seed", type=int, default=0)
    return parser
