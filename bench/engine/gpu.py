"""What `make bench-gpu` measures beside `measures`: the strongest baseline, compilers, kernels.

The baseline is plain diffusers compiled with channels-last. Each way to compile, each attention
kernel and each kind of linear layers is timed on the same UNet. Where there is no GPU it runs on a
tiny model with dynamo alone, so that the command is tested; no figure means anything then.
"""

import importlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bench.engine.contenders import Contender, PlainProcess, at_once
from bench.engine.measures import AT_ONCE, IN_A_LOOP, Bench, timed
from bench.engine.plain import Plain
from bench.engine.subject import Subject
from bench.engine.tasks import LORAS
from workers.engine.attention import KERNELS, measure_kernel
from workers.engine.engine import Engine
from workers.engine.models.hub import loader_arguments

STEADY: Final = 5
"""Runs of a compiled network whose median is its steady time."""
PSNR_AT_LEAST: Final = 30.0
"""Decibels by which a prediction of quantized layers may differ at most, to be accepted."""
FASTER_AT_LEAST: Final = 1.1
"""How much faster a step with quantized layers must be, to be accepted."""


class CompiledPlain(Plain):
    """Plain pipelines with UNet and VAE decoder compiled whole, in channels-last."""

    def _load(self, *key: Any) -> Any:
        pipe = super()._load(*key)
        for network in (pipe.unet, pipe.vae, getattr(pipe, "controlnet", None)):
            if network is not None:
                network.to(memory_format=torch.channels_last)
        pipe.unet.compile(backend=_backend(), dynamic=False)
        pipe.vae.decode = torch.compile(pipe.vae.decode, backend=_backend(), dynamic=False)
        return pipe


def _backend() -> str:
    return "inductor" if torch.cuda.is_available() else "eager"


class GpuBench(Bench):
    """The bench of a GPU; `compiled_plain` are the compiled pipelines."""

    def __init__(
        self, subject: Subject, engine: Engine, plain: PlainProcess, compiled_plain: PlainProcess
    ) -> None:
        super().__init__(subject, engine, plain)
        self._compiled = compiled_plain

    @property
    def parts(self) -> Mapping[str, Callable[[], None]]:
        """See `Bench.parts`."""
        return {
            **super().parts,
            "sizes and steps": self._sizes,
            "ControlNet and LoRA": self._steered,
            "VAE decode": self._decode,
            "ways to compile": self._ways_to_compile,
            "attention kernels": self._kernels,
            "quantized linear layers": self._quantized,
            "first picture": self._first_picture,
        }

    def _sizes(self) -> None:
        subject = self._subject
        sizes = (subject.burst, subject.other, subject.single)
        for size, steps in itertools.product(dict.fromkeys(sizes), (subject.steps, subject.short)):
            what = f"{steps} steps at {size[0]} x {size[1]}"
            for count, rates in self._rates({"size": size, "steps": steps}, AT_ONCE).items():
                self.results.add(f"{count} jobs of {what}", "pictures/s", rates)

    def _steered(self) -> None:
        subject = self._subject
        common = {"size": subject.burst, "steps": subject.burst_steps}
        for name, fields in (("ControlNet", {"control": True}), ("LoRA", {"lora": (LORAS[0],)})):
            rates = self._rates(common | fields, (IN_A_LOOP,))[IN_A_LOOP]
            self.results.add(f"{IN_A_LOOP} jobs with a {name}", "pictures/s", rates)

    def _rates(
        self, fields: Mapping[str, Any], counts: tuple[int, ...]
    ) -> dict[int, dict[str, float]]:
        """Pictures a second by number of jobs; pipelines run one at a time whatever it is."""

        def together(contender: Contender, count: int) -> None:
            jobs = [self._subject.job(next(self._seeds), **fields) for _ in range(count)]
            at_once(contender, jobs)

        runs: dict[str, Callable[[], object]] = {
            "plain": partial(together, self._plain, 1),
            "compiled": partial(together, self._compiled, 1),
            **{str(count): partial(together, self._batched, count) for count in counts},
        }
        seconds = self._interleaved(runs, warm=True)
        alone = {who: 1 / seconds[who] for who in ("plain", "compiled")}
        return {count: {**alone, "engine": count / seconds[str(count)]} for count in counts}

    def _decode(self) -> None:
        vae = self._model.pipe.vae
        side = self._subject.single[1] // 8, self._subject.single[0] // 8
        latents = torch.randn(1, vae.config.latent_channels, *side).to(vae.device, vae.dtype)
        decode: Any = torch.compile(vae.decode, backend=_backend(), dynamic=False)
        first, steady = _seconds(lambda: decode(latents))
        _, eager = _seconds(lambda: vae.decode(latents))
        self.results.add("VAE decode", "s", {"plain": eager, "compiled": steady})
        self.results.add("VAE decode, first run", "s", {"compiled": first})

    def _ways_to_compile(self) -> None:
        """One guided step of one picture: first run, with cold caches, and steady state."""
        for name, compiled in self._ways():
            torch.compiler.reset()
            with tempfile.TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                unet = self._unet()
                compiled(unet)
                first, steady = _seconds(partial(self._step, unet))
            del os.environ["TORCHINDUCTOR_CACHE_DIR"], unet
            self.results.add(f"a step, {name}", "s", {"first run": first, "steady": steady})

    def _ways(self) -> Iterator[tuple[str, Callable[[Any], object]]]:
        yield "uncompiled", lambda _: None
        yield "compiled whole", lambda unet: unet.compile(backend=_backend())
        yield (
            "compiled by repeated blocks",
            lambda unet: unet.compile_repeated_blocks(backend=_backend()),
        )
        if torch.cuda.is_available():
            yield "reduce-overhead", lambda unet: unet.compile(mode="reduce-overhead")

    def _kernels(self) -> None:
        if not torch.cuda.is_available():
            return
        for name, kernel in KERNELS.items():
            if name != "xformers" or importlib.util.find_spec("xformers") is not None:
                seconds = measure_kernel(kernel)
                self.results.add(f"attention of a step, {name}", "s", {"kernel": seconds})

    def _quantized(self) -> None:
        """8-bit linear layers, if torchao is installed; accepted where fast and near enough."""
        if importlib.util.find_spec("torchao") is None:
            return
        quantization: Any = importlib.import_module("torchao.quantization")
        kinds: dict[str, Any] = {"int8": quantization.Int8DynamicActivationInt8WeightConfig()}
        if torch.cuda.is_available():
            kinds["fp8"] = quantization.Float8DynamicActivationFloat8WeightConfig()
        reference = self._unet()
        expected = self._step(reference)
        reference.compile(backend=_backend())
        _, plain = _seconds(partial(self._step, reference))
        for name, config in kinds.items():
            unet = self._unet()
            quantization.quantize_(unet, config, filter_fn=_is_wide)
            difference = _psnr(self._step(unet), expected)
            unet.compile(backend=_backend())
            _, seconds = _seconds(partial(self._step, unet))
            accepted = difference >= PSNR_AT_LEAST and plain / seconds >= FASTER_AT_LEAST
            figures = {
                "times as fast": plain / seconds,
                "dB": difference,
                "accepted": float(accepted),
            }
            self.results.add(f"{name} linear layers", "", figures)

    def _first_picture(self) -> None:
        """From the start of a process to its first picture, with cold and warm compile caches."""
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            command = [sys.executable, "-m", "bench.engine.first_picture"]
            command += [str(self._subject.models), *map(str, self._subject.single)]
            spent = {
                f"{kind} caches": timed(
                    lambda: subprocess.run(command, check=True, env=environment)
                )
                for kind in ("cold", "warm")
            }
        self.results.add("process start to first picture", "s", spent)

    @property
    def _model(self) -> Any:
        return next(iter(self._engine.models.values()))

    def _unet(self) -> Any:
        """A UNet of its own, as plain diffusers loads it."""
        base, model = self._subject.catalog.models[self._model.name].base, self._model
        unet = UNet2DConditionModel.from_pretrained(
            base.location, subfolder="unet", dtype=model.dtype, **loader_arguments(base)
        )
        return unet.to(model.device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def _step(self, unet: Any) -> Tensor:
        """The prediction of one guided step; the same inputs each time."""
        config, generator = unet.config, torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(unet.device, unet.dtype)

        width, height = self._subject.single
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        predicted: Tensor = unet(
            noise(2, config.in_channels, height // 8, width // 8),
            torch.tensor(500, device=unet.device),
            noise(2, 77, config.cross_attention_dim),
            added_cond_kwargs={
                "text_embeds": noise(2, pooled),
                "time_ids": torch.full((2, 6), float(height)).to(unet.device, unet.dtype),
            },
        ).sample
        return predicted.clone()


def _is_wide(module: nn.Module, _name: str) -> bool:
    """Whether 8 bits may pay: a linear layer of some width, in multiples that kernels take."""
    return isinstance(module, nn.Linear) and not (
        module.in_features % 16 or module.out_features % 16
    )


def _psnr(got: Tensor, expected: Tensor) -> float:
    """Peak signal (the largest prediction) to the error, in decibels."""
    error = (got.float() - expected.float()).square().mean()
    return float(20 * expected.float().abs().max().log10() - 10 * error.log10())


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first run, and the median of `STEADY` later ones."""

    @torch.inference_mode()
    def waited() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    first = timed(waited)
    return first, statistics.median(timed(waited) for _ in range(STEADY))
