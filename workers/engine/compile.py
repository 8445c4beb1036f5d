"""UNet and ControlNets compiled by torch.compile for a fixed set of batch sizes and shapes.

All of the set is compiled at warm-up (inductor keeps it on disk for the next start); a batch is
padded to the next size of the set, and a picture size that is not in it runs uncompiled. So
nothing is compiled while serving, and what is all the same is counted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from workers.engine.attention import Context
from workers.engine.forward import control_forward, unet_forward
from workers.engine.loading import LoadedModel
from workers.engine.networks import Networks

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


class CompiledNetworks(Networks):
    """As `Networks`; `prepare` compiles, after `seal` every compilation is told of.

    `backend` is what torch.compile calls with each graph.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        on_recompile: Callable[[], None],
        backend: Backend = inductor,
    ) -> None:
        super().__init__(model)
        self._on_recompile = on_recompile
        self._backend = backend
        self._sealed = False
        self._by_rule = False
        self._counts: dict[tuple[int, int], tuple[int, ...]] = {}
        self._unet = self._compile(_denoise)
        self._control = self._compile(_residuals)

    def padded(self, places: int, height: int, width: int) -> int:
        """The next batch size of the set; `places` itself where nothing compiled is run."""
        if self._by_rule:
            return places
        return min(
            (count for count in self._counts.get((height, width), ()) if count >= places),
            default=places,
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
            log.warning("a compiled batch of %d places does not fit into memory", count)
        else:
            return counts[-1]
        # Only here are the frames gone that held the memory.
        self.free_memory()
        self._counts[height, width] = fit
        return max(fit, default=0)

    def seal(self) -> None:
        """From now on a compilation is one too many."""
        self._sealed = True

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """See `Networks.repeatable`; uncompiled, for inductor chooses some kernels by timing."""
        self._by_rule = True
        try:
            with super().repeatable():
                yield
        finally:
            self._by_rule = False

    def denoise(
        self, sample: Tensor, emb: Tensor, context: Context, residuals: Sequence[Tensor] | None
    ) -> Tensor:
        """See `Networks.denoise`."""
        if not self._is_compiled(sample):
            return super().denoise(sample, emb, context, residuals)
        context = self._filled(context)
        for part in (context.image, context.bias):
            assert part is not None, "a filled context has an image and a bias"
            torch._dynamo.mark_dynamic(part, 1)  # noqa: SLF001 (its public name is this)
        steady = None if residuals is None else [_channels_last(part) for part in residuals]
        out: Tensor = self._unet(
            self._model.unet,
            sample.contiguous(),
            emb,
            context.text,
            context.image,
            context.scale,
            context.bias,
            steady,
        )
        return out

    def control(
        self, name: str, sample: Tensor, emb: Tensor, context: Context, hint: Tensor, scale: Tensor
    ) -> list[Tensor]:
        """See `Networks.control`."""
        if not self._is_compiled(sample):
            return super().control(name, sample, emb, context, hint, scale)
        net = self._model.controlnets[name].model
        parts: list[Tensor] = self._control(
            net, sample.contiguous(), emb, context.text, _channels_last(hint), scale
        )
        return parts

    def _filled(self, context: Context) -> Context:
        """The same context with every part there, so that one graph serves all."""
        image, scale, bias = context.image, context.scale, context.bias
        rows, _, width = context.text.shape
        if image is None or scale is None:
            image = context.text.new_zeros(rows, IMAGE_TOKENS[0], width)
            scale = context.text.new_zeros(rows, len(self._model.layers))
        if bias is None:
            bias = image.new_zeros(image.shape[:2])
        return Context(context.text, image, scale, bias)

    def _is_compiled(self, sample: Tensor) -> bool:
        counts = self._counts.get((sample.shape[-2], sample.shape[-1]), ())
        return len(sample) in counts and not self._by_rule

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

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(count, *shape, dtype=self.dtype, device=model.device)

        sample = zeros(model.unet.config.in_channels, height, width)
        emb = zeros(model.unet.time_embedding.linear_2.out_features)
        tokens = model.pipe.tokenizer.model_max_length
        text = zeros(tokens, _width(model.layers))
        residuals: list[Tensor] | None = None
        for name, control in model.controlnets.items():
            context = Context(zeros(tokens, _width(control.layers)))
            channels = control.model.config.block_out_channels[0]
            residuals = self.control(
                name, sample, emb, context, zeros(channels, height, width), zeros().flatten()
            )
        for image_tokens in IMAGE_TOKENS:
            context = Context(
                text, zeros(image_tokens, _width(model.layers)), zeros(len(model.layers))
            )
            self.denoise(sample, emb, context, None)
            if residuals is not None:
                self.denoise(sample, emb, context, residuals)


def _cause(error: Exception) -> Exception:
    """What a compiler raised, of which dynamo makes an error of its own."""
    cause: Exception = getattr(error, "inner_exception", error)
    return cause


def _denoise(
    unet: Any,
    sample: Tensor,
    emb: Tensor,
    text: Tensor,
    image: Tensor,
    scale: Tensor,
    bias: Tensor,
    residuals: list[Tensor] | None,
) -> Tensor:
    return unet_forward(unet, sample, emb, Context(text, image, scale, bias), residuals)


def _residuals(
    net: Any, sample: Tensor, emb: Tensor, text: Tensor, hint: Tensor, scale: Tensor
) -> list[Tensor]:
    return control_forward(net, sample, emb, Context(text), hint, scale)


def _width(layers: Sequence[Any]) -> int:
    return sum(2 * layer.to_k.out_features for layer in layers)


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last)
