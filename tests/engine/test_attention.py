"""Decoupled attention on every kernel against the formula written out in float64."""

import pytest
import torch
from torch import Tensor

from workers.engine import attention
from workers.engine.attention import Context, ImageContext, Kernel

HEADS, WIDTH = 3, 8
TEXT_TOKENS, IMAGE_TOKENS, QUERIES, LAYERS = 7, 5, 20, 2

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def inputs(dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Context]:
    """Four rows with a lambda each: full, padded, weighted, and one without an image.

    A second image prompt acts where its mask says.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    width = LAYERS * 2 * HEADS * WIDTH
    bias = torch.zeros(4, IMAGE_TOKENS, dtype=torch.float64)
    bias[1, 3:] = -torch.inf
    bias[2, :2] = torch.log(torch.tensor(0.25))
    scale = torch.tensor([[1.0, 0.3], [0.7, 0.0], [2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    context = Context(
        text=random(4, TEXT_TOKENS, width),
        images=(
            ImageContext(
                random(4, IMAGE_TOKENS, width), scale.to(device, dtype), bias.to(device, dtype)
            ),
            ImageContext(
                random(4, IMAGE_TOKENS, width),
                scale.flip(0).to(device, dtype),
                masks={QUERIES: random(4, QUERIES, 1, 1)},
            ),
        ),
    )
    return random(4, QUERIES, HEADS, WIDTH), context


def reference(query: Tensor, context: Context, layer: int) -> Tensor:
    """The formula as the paper has it, row by row and head by head."""
    first, second = context.images
    assert first.bias is not None
    assert second.masks is not None
    everywhere, mask = torch.ones(QUERIES, 1).double(), second.masks[QUERIES].double()
    zeros = torch.zeros(IMAGE_TOKENS)
    out = torch.zeros(query.shape, dtype=torch.float64)
    start, inner = layer * 2 * HEADS * WIDTH, HEADS * WIDTH
    for row in range(len(query)):
        for head in range(HEADS):
            keys = slice(start + head * WIDTH, start + (head + 1) * WIDTH)
            values = slice(keys.start + inner, keys.stop + inner)
            q = query[row, :, head].double()
            for kv, factor, bias in (
                (context.text[row], everywhere, torch.zeros(TEXT_TOKENS)),
                (first.kv[row], first.scale[row, layer] * everywhere, first.bias[row]),
                (second.kv[row], second.scale[row, layer] * mask[row, :, 0], zeros),
            ):
                logits = q @ kv[:, keys].double().T / WIDTH**0.5 + bias.double()
                out[row, :, head] += factor * (logits.softmax(-1) @ kv[:, values].double())
    return out


def relative_error(kernel: Kernel, dtype: torch.dtype, device: str = "cpu") -> float:
    """Largest error over both layers, relative to the largest value."""
    query, context = inputs(dtype, device)
    exact_query, exact = inputs(torch.float64)
    worst = 0.0
    for layer in range(LAYERS):
        offset = layer * 2 * HEADS * WIDTH
        ours = attention.decoupled(kernel, query, context, layer=layer, offset=offset)
        theirs = reference(exact_query, exact, layer)
        error = (ours.double().cpu() - theirs).abs().max() / theirs.abs().max()
        worst = max(worst, float(error))
    return worst


@pytest.mark.parametrize("kernel", [attention.plain, attention.sdpa, attention.cudnn])
def test_kernels_equal_the_formula(kernel: Kernel) -> None:
    """In float64 to rounding, in float32 to 1e-5 of the largest value."""
    assert relative_error(kernel, torch.float64) < 1e-12
    assert relative_error(kernel, torch.float32) < 1e-5


@needs_cuda
@pytest.mark.parametrize("kernel", [attention.xformers, attention.sdpa, attention.cudnn])
def test_kernels_equal_the_formula_on_a_gpu(kernel: Kernel) -> None:
    """float16 to 3e-3, float32 to 1e-5."""
    if kernel is attention.xformers:
        pytest.importorskip("xformers")
    assert relative_error(kernel, torch.float16, "cuda") < 3e-3
    assert relative_error(kernel, torch.float32, "cuda") < 1e-5


def test_without_an_image_prompt_only_the_text_is_seen() -> None:
    """A batch without any image prompt runs the text's attention alone."""
    query, context = inputs(torch.float32)
    calls: list[int] = []

    def counting(*arguments: Tensor) -> Tensor:
        calls.append(1)
        return attention.sdpa(*arguments)

    attention.decoupled(counting, query, Context(context.text), layer=0, offset=0)
    assert len(calls) == 1


@pytest.mark.parametrize("tokens", [1, 5, 8, 12])
def test_a_bias_is_laid_out_as_xformers_reads_it(tokens: int) -> None:
    """Its rows start at multiples of eight elements, its values stay the same."""
    bias = torch.randn(3, tokens)
    aligned = attention.aligned(bias)
    assert aligned.stride(0) % attention.BIAS_ALIGNMENT == 0
    assert torch.equal(aligned, bias)
