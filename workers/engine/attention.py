"""The paper's decoupled cross-attention, over keys and values that were made beforehand.

Z = softmax(QK^T / sqrt(d)) V + lambda * softmax(QK'^T / sqrt(d)) V' (arXiv 2308.06721, section
3.2.2, equation 5). All kernels give the same result: xformers, PyTorch's SDPA with the kernel of
its own choice or cuDNN's, and a plain one that the tests read. On CUDA the fastest one is chosen at
start-up by timing them on the shapes that take most of a step's time; a CPU has SDPA only.
"""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from service.core.errors import ConfigurationError
from service.core.settings import AttentionBackend

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of queries `(batch, queries, heads, d)` to keys and values `(batch, tokens, heads, d)`.

The last argument is a bias of the logits, `(batch, tokens)` or None. Returns `(batch, queries,
heads, d)`.
"""

_CUDNN_FIRST: Final = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
BIAS_ALIGNMENT: Final = 8
"""xformers reads a bias whose rows start at multiples of this many elements."""


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Compute attention as the formula is written, in the dtype of its inputs."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    if bias is not None:
        logits = logits + bias[:, None, None, :]
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), value)


def sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Compute attention with PyTorch's scaled_dot_product_attention, whichever kernel it picks."""
    mask = None if bias is None else bias[:, None, None, :]
    out = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def cudnn(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Compute attention with SDPA's cuDNN kernel where it can, else with its others; CUDA only."""
    with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
        return sdpa(query, key, value, bias)


def xformers(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Compute attention with xformers' memory-efficient kernels; CUDA only."""
    from xformers.ops import memory_efficient_attention  # noqa: PLC0415 (absent on most machines)

    mask = None
    if bias is not None:
        mask = aligned(bias)[:, None, None, :].expand(
            -1, query.shape[2], query.shape[1], bias.shape[1]
        )
    out: Tensor = memory_efficient_attention(query, key, value, attn_bias=mask)
    return out


def aligned(bias: Tensor) -> Tensor:
    """Copy a bias `(batch, tokens)` into memory whose rows start where xformers can read them."""
    tokens = bias.shape[1]
    padding = -tokens % BIAS_ALIGNMENT
    return functional.pad(bias, (0, padding))[:, :tokens]


@dataclass(frozen=True, slots=True)
class ImageContext:
    """Image prompts that the rows of a batch attend to, together.

    `kv` is `(batch, image tokens, width)`; `scale` is lambda, `(batch, layers)`; `bias` is added to
    the logits, `(batch, image tokens)`: the logarithm of an image's relative weight, minus infinity
    for padding. `masks` tell where the image prompts act, by number of queries,
    `(batch, queries, 1, 1)`.
    """

    kv: Tensor
    scale: Tensor
    bias: Tensor | None = None
    masks: Mapping[int, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What the rows of one batch attend to: keys and values of every layer side by side.

    `text` is `(batch, text tokens, width)`, where a layer's keys and then its values are at its own
    offset in `width`; `text_bias`, `(batch, text tokens)`, is minus infinity for padding where
    texts are of different lengths. `images` are attended to one after the other, each with a
    softmax of its own.
    """

    text: Tensor
    images: tuple[ImageContext, ...] = ()
    text_bias: Tensor | None = None


def stack_texts(texts: Sequence[Tensor]) -> Context:
    """Texts of the rows of a batch, `(tokens, width)` each, padded to the longest one."""
    lengths = {len(text) for text in texts}
    if len(lengths) == 1:
        return Context(torch.stack(list(texts)))
    longest = max(lengths)
    stacked = texts[0].new_zeros(len(texts), longest, texts[0].shape[1])
    bias = texts[0].new_full((len(texts), longest), -torch.inf)
    for row, text in enumerate(texts):
        stacked[row, : len(text)] = text
        bias[row, : len(text)] = 0
    return Context(stacked, text_bias=bias)


def decoupled(
    kernel: Kernel, query: Tensor, context: Context, *, layer: int, offset: int
) -> Tensor:
    """Attend `query`, `(batch, queries, heads, d)`, to the text and the images of its row.

    `layer` is the layer's number and `offset` where its keys begin in the context's width.
    Returns the shape of `query`.
    """
    key, value = _slices(context.text, offset, query)
    out = kernel(query, key, value, context.text_bias)
    for image in context.images:
        key, value = _slices(image.kv, offset, query)
        attended = kernel(query, key, value, image.bias)
        scale = image.scale[:, layer, None, None, None]
        if image.masks is not None:
            scale = scale * image.masks[query.shape[1]]
        out = torch.addcmul(out, attended, scale)
    return out


def _slices(kv: Tensor, offset: int, query: Tensor) -> tuple[Tensor, Tensor]:
    heads, d = query.shape[2:]
    middle, end = offset + heads * d, offset + 2 * heads * d
    key, value = kv[..., offset:middle], kv[..., middle:end]
    return key.unflatten(-1, (heads, d)), value.unflatten(-1, (heads, d))


KERNELS: Final[Mapping[str, Kernel]] = {"sdpa": sdpa, "sdpa cudnn": cudnn, "xformers": xformers}
SHAPES: Final = ((2, 4096, 4096, 10, 64), (2, 1024, 1024, 20, 64), (2, 4096, 77, 10, 64))
"""(batch, queries, tokens, heads, head width) of SDXL at 1024 x 1024, where its time goes."""
REPEATS: Final = 20


def choose_kernel(
    wanted: AttentionBackend,
    device: torch.device,
    *,
    has_xformers: bool | None = None,
    measure: Callable[[Kernel], float] | None = None,
) -> Kernel:
    """The kernel for a setting on this machine; one log line names it and says why.

    `measure` gives a kernel's time in seconds. Raises `ConfigurationError` where xformers is
    asked for and cannot run.
    """
    present = importlib.util.find_spec("xformers") is not None
    usable = (present if has_xformers is None else has_xformers) and device.type == "cuda"
    if wanted is AttentionBackend.XFORMERS:
        if not usable:
            raise ConfigurationError(
                "IMAGEPROMPT_ATTENTION is xformers, which needs CUDA and the package xformers"
            )
        return xformers
    if device.type == "cuda" and not usable:
        log.warning("attention: xformers is not installed; SDPA is used instead")
    if wanted is AttentionBackend.SDPA or device.type != "cuda":
        return sdpa
    candidates = [name for name in KERNELS if usable or name != "xformers"]
    seconds = {name: (measure or measure_kernel)(KERNELS[name]) for name in candidates}
    fastest = min(seconds, key=lambda name: seconds[name])
    figures = ", ".join(f"{name} {time * 1e3:.2f} ms" for name, time in seconds.items())
    log.info("attention: %s is the fastest on this machine (%s)", fastest, figures)
    return KERNELS[fastest]


def measure_kernel(kernel: Kernel) -> float:
    """Seconds that a kernel takes for `SHAPES` in float16 on the GPU; infinity where it fails."""
    total = 0.0
    try:
        for batch, queries, tokens, heads, width in SHAPES:
            query = torch.randn(batch, queries, heads, width, device="cuda", dtype=torch.float16)
            key = torch.randn(batch, tokens, heads, width, device="cuda", dtype=torch.float16)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(3):
                kernel(query, key, key, None)
            start.record()
            for _ in range(REPEATS):
                kernel(query, key, key, None)
            end.record()
            end.synchronize()
            total += start.elapsed_time(end) / REPEATS / 1e3
    except (RuntimeError, NotImplementedError) as error:
        log.warning("attention: a kernel does not run here: %s", error)
        return float("inf")
    return total
