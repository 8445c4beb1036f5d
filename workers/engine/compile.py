"""The networks that run at each step, uncompiled or compiled by torch.compile.

For a fixed set of batch sizes and picture sizes everything is compiled at warm-up (inductor keeps
it on disk for the next start). A batch is padded to the next size of the set, and a picture size
that is not in it runs uncompiled. So nothing is compiled while serving; if it is, it is counted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from workers.engine.attention import Context, ImageContext
from workers.engine.determinism import deterministic
from workers.engine.models.base import ControlNet, Model

log = logging.getLogger(__name__)

IMAGE_TOKENS: Final = (4, 16)
"""Numbers of image tokens tried at warm-up. The dimension is dynamic: any number over 1 will do."""
VARIANTS: Final = 1024
"""More compiled variants of one function than any catalog needs; torch's own limit is 8."""

Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]


def inductor(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    """Compile a graph with inductor, as `torch.compile` does by itself."""
    from torch._inductor.compile_fx import compile_fx  # noqa: PLC0415 (loads a compiler)

    compiled: Any = compile_fx(graph, examples)
    return compiled  # type: ignore[no-any-return]  # its union of results is not for this call


class Networks:
    """The networks that run at every step, for one model, uncompiled.

    This is the seam for memory: everything large that a step allocates is allocated in here, and
    tests replace its methods to run out of it.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.dtype = model.dtype

    def padded(self, entries: int, height: int, width: int) -> int:  # noqa: ARG002 (the compiled ones need it)
        """The batch size at which `entries` of latents `height` x `width` are run."""
        return entries

    def prepare(self, height: int, width: int, counts: Sequence[int]) -> int:  # noqa: ARG002 (as above)
        """Make ready for latents of `height` x `width` in batches of `counts`; here, nothing.

        `counts` ascend. Returns the largest that may be run, 0 where not even the first fits.
        """
        return counts[-1]

    def seal(self) -> None:
        """Everything is ready; here, nothing changes."""

    @contextmanager
    def deterministic(self) -> Iterator[None]:
        """Inside, a batch gives the same bytes after every start; see `determinism.py`."""
        with deterministic(self._model.networks):
            yield

    def denoise(
        self,
        sample: Tensor,
        emb: Tensor,
        context: Context,
        residuals: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
        *,
        changed: bool = False,  # noqa: ARG002 (the compiled ones need it)
    ) -> Tensor:
        """The prediction for the whole batch; see `models.base.Model.predict`.

        `changed`: layers were changed for this batch alone, as by LoRAs.
        """
        return self._model.predict(sample, emb, context, residuals, features)

    def control(
        self, name: str, sample: Tensor, emb: Tensor, context: Context, hint: Tensor, scale: Tensor
    ) -> list[Tensor]:
        """The residuals of the ControlNet `name`; see `models.base.ControlNet.residuals`."""
        net: ControlNet = self._model.controlnets[name]
        return net.residuals(sample, emb, context, hint, scale)

    def free_memory(self) -> None:
        """Release cached device memory after running out of it."""
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


class CompiledNetworks(Networks):
    """As `Networks`; `prepare` compiles, and after `seal` each compilation is reported.

    `backend` is what torch.compile calls with each graph.
    """

    def __init__(
        self,
        model: Model,
        *,
        on_recompile: Callable[[], None],
        backend: Backend = inductor,
    ) -> None:
        super().__init__(model)
        self._on_recompile = on_recompile
        self._backend = backend
        self._sealed = False
        self._deterministic = False
        self._counts: dict[tuple[int, int], tuple[int, ...]] = {}
        self._unet = self._compile(_predict)
        self._control = self._compile(_control)

    def padded(self, entries: int, height: int, width: int) -> int:
        """The next batch size of the set; `entries` itself where nothing compiled is run."""
        if self._deterministic:
            return entries
        return min(
            (count for count in self._counts.get((height, width), ()) if count >= entries),
            default=entries,
        )

    def prepare(self, height: int, width: int, counts: Sequence[int]) -> int:
        """Compile every network for latents of `height` x `width` and each of `counts` rows.

        Where memory runs out, the smaller counts stay. A machine whose compiler fails goes on
        uncompiled. Either is one line in the log.
        """
        # The setting holds for the thread that makes it: this one, which runs the networks.
        torch._dynamo.config.recompile_limit = VARIANTS  # noqa: SLF001 (its public name is this)
        fit: tuple[int, ...] = ()
        try:
            for count in counts:
                self._counts[height, width] = (*fit, count)
                self._run_all(count, height, width)
                fit = self._counts[height, width]
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:  # noqa: SLF001
            if isinstance(_cause(error), torch.AcceleratorError):
                raise
            if not isinstance(_cause(error), torch.OutOfMemoryError):
                log.warning(
                    "torch.compile does not work here, the model runs uncompiled: %s", error
                )
                del self._counts[height, width]
                return counts[-1]
            log.warning("a compiled batch of %d entries does not fit into memory", count)
        else:
            return counts[-1]
        # Only here are the frames gone that held the memory.
        self.free_memory()
        self._counts[height, width] = fit
        return max(fit, default=0)

    def seal(self) -> None:
        """From now on compilations are counted."""
        self._sealed = True

    @contextmanager
    def deterministic(self) -> Iterator[None]:
        """See `Networks.deterministic`; uncompiled, for inductor chooses some kernels by timing."""
        self._deterministic = True
        try:
            with super().deterministic():
                yield
        finally:
            self._deterministic = False

    def denoise(
        self,
        sample: Tensor,
        emb: Tensor,
        context: Context,
        residuals: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
        *,
        changed: bool = False,
    ) -> Tensor:
        """See `Networks.denoise`. Batches of rare kinds run uncompiled.

        These are several image prompts side by side, masks, T2I-Adapters, and LoRAs.
        """
        plain = len(context.images) <= 1 and all(image.masks is None for image in context.images)
        length = self._model.text_layout(1)["tokens"][1]
        plain = plain and context.text_bias is None and context.text.shape[1] == length
        if changed or not plain or features is not None or not self._is_compiled(sample):
            return super().denoise(sample, emb, context, residuals, features)
        image, bias = self._filled(context)
        for part in (image.kv, bias):
            torch._dynamo.mark_dynamic(part, 1)  # noqa: SLF001 (its public name is this)
        laid_out = None if residuals is None else [_channels_last(part) for part in residuals]
        out: Tensor = self._unet(
            self._model.predict,
            sample.contiguous(),
            emb,
            context.text,
            image.kv,
            image.scale,
            bias,
            laid_out,
        )
        return out

    def control(
        self, name: str, sample: Tensor, emb: Tensor, context: Context, hint: Tensor, scale: Tensor
    ) -> list[Tensor]:
        """See `Networks.control`."""
        length = self._model.text_layout(1)["tokens"][1]
        plain = context.text_bias is None and context.text.shape[1] == length
        if not plain or not self._is_compiled(sample):
            return super().control(name, sample, emb, context, hint, scale)
        net: ControlNet = self._model.controlnets[name]
        parts: list[Tensor] = self._control(
            net.residuals, sample.contiguous(), emb, context.text, _channels_last(hint), scale
        )
        return parts

    def _filled(self, context: Context) -> tuple[ImageContext, Tensor]:
        """An image context and its bias, made of zeros where there is none: one graph for all."""
        if not context.images:
            context = self._model.blank_context(len(context.text), IMAGE_TOKENS[0])
        (image,) = context.images
        bias = image.bias
        return image, image.kv.new_zeros(image.kv.shape[:2]) if bias is None else bias

    def _is_compiled(self, sample: Tensor) -> bool:
        counts = self._counts.get((sample.shape[-2], sample.shape[-1]), ())
        return len(sample) in counts and not self._deterministic

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
            if self._sealed:
                self._on_recompile()
                log.warning("a network was compiled while serving")
            return self._backend(graph, examples)

        compiled: Callable[..., Any] = torch.compile(
            function, backend=backend, fullgraph=True, dynamic=False
        )
        return compiled

    def _run_all(self, count: int, height: int, width: int) -> None:
        model = self._model
        sample = torch.zeros(
            count, model.input_channels, height, width, dtype=self.dtype, device=model.device
        )
        emb = model.blank_emb(count)
        residuals: list[Tensor] | None = None
        for name, net in model.controlnets.items():
            scale = sample.new_zeros(count)
            hint = net.blank_hint(count, height, width)
            residuals = self.control(name, sample, emb, net.blank_context(count), hint, scale)
        for image_tokens in IMAGE_TOKENS:
            context = model.blank_context(count, image_tokens)
            self.denoise(sample, emb, context, None)
            if residuals is not None:
                self.denoise(sample, emb, context, residuals)


def _cause(error: Exception) -> Exception:
    """What a compiler raised, where dynamo wrapped it in an error of its own."""
    cause: Exception = getattr(error, "inner_exception", error)
    return cause


def _predict(
    predict: Callable[..., Tensor],
    sample: Tensor,
    emb: Tensor,
    text: Tensor,
    image: Tensor,
    scale: Tensor,
    bias: Tensor,
    residuals: list[Tensor] | None,
) -> Tensor:
    context = Context(text, (ImageContext(image, scale, bias),))
    return predict(sample, emb, context, residuals, None)


def _control(
    residuals: Callable[..., list[Tensor]],
    sample: Tensor,
    emb: Tensor,
    text: Tensor,
    hint: Tensor,
    scale: Tensor,
) -> list[Tensor]:
    return residuals(sample, emb, Context(text), hint, scale)


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last)
