"""Text: prompt and negative prompt, encoded once and cached; the time embeddings go with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.core.errors import UnservableRequest
from service.core.params import GenerateRequest
from workers.engine.api import EngineJob
from workers.engine.attention import Context, stack_texts
from workers.engine.cache import Embedding, EmbeddingCache, text_fingerprint
from workers.engine.conditioning.base import (
    BatchEntry,
    Conditioning,
    Forward,
    Preparation,
    state,
)
from workers.engine.conditioning.lora import text_variant
from workers.engine.device import to_device
from workers.engine.models.base import Model
from workers.engine.models.lora import everywhere, updated
from workers.engine.models.prompts import HEAVIEST, MAX_CHUNKS, Prompt


@dataclass(frozen=True, slots=True)
class TextInput:
    """One text and its cached embedding; None where it must be encoded."""

    key: str
    prompt: Prompt
    clip_skip: int
    embedding: Embedding | None


@dataclass(frozen=True, slots=True)
class TextInputs:
    """`negative` is None without guidance, and where zeros stand for the empty text."""

    positive: TextInput
    negative: TextInput | None


@dataclass(frozen=True, slots=True, eq=False)
class TextState:
    """`kv` is `(branches, tokens, width)`, `emb` `(branches, steps, width)`."""

    kv: Tensor
    emb: Tensor


class Text(Conditioning):
    """Prompt and negative prompt."""

    name = "text"

    def __init__(self, cache: EmbeddingCache) -> None:
        self._cache = cache

    def check(self, request: GenerateRequest, model: Model) -> None:
        """The text encoders must have enough layers."""
        if request.clip_skip > model.max_clip_skip:
            raise UnservableRequest(
                f"`clip_skip` is {request.clip_skip}; this model's text encoders allow "
                f"{model.max_clip_skip} at most"
            )

    def gather(self, job: EngineJob, model: Model) -> TextInputs:
        """Look up the embeddings of both texts."""
        request = job.request
        negative = None
        if request.guided and (request.negative_prompt or not model.zero_negative):
            # As in diffusers' pipelines, `clip_skip` is for the prompt only.
            negative = self._look_up(request, request.negative_prompt, 0, model)
        positive = self._look_up(request, request.prompt, request.clip_skip, model)
        return TextInputs(positive, negative)

    def prepare(self, job: Preparation, gathered: TextInputs) -> TextState:
        """Encode what no cache had; K and V of every layer, time embeddings of every step."""
        with updated(everywhere(job.updates)):
            return self._prepare(job, gathered)

    def _prepare(self, job: Preparation, gathered: TextInputs) -> TextState:
        branches = [self._encode(job, gathered.positive)]
        texts = [("prompt", gathered.positive)]
        if job.request.guided:
            negative = gathered.negative
            positive = branches[0]
            zeros = {name: torch.zeros_like(part) for name, part in positive.items()}
            branches.insert(0, zeros if negative is None else self._encode(job, negative))
            texts += [] if negative is None else [("negative_prompt", negative)]
            if negative is not None:
                branches = self._same_length(job, branches)
        for name, text in texts:
            if text.prompt.truncated:
                job.warn(
                    "prompt-truncated",
                    f"`{name}` is longer than the {MAX_CHUNKS} chunks that are encoded; its end "
                    "was cut off",
                )
            if text.prompt.limited:
                job.warn(
                    "prompt-weight-limited",
                    f"`{name}` has a weight above {HEAVIEST:g}; {HEAVIEST:g} was used",
                )
        _warn_of_guidance(job)
        job.text = {name: torch.cat([branch[name] for branch in branches]) for name in branches[0]}
        return TextState(
            kv=job.model.text_kv(job.text),
            emb=job.model.time_embeddings(job.timesteps, job.text, job.size),
        )

    def join(self, entries: Sequence[BatchEntry], context: Context) -> Context:  # noqa: ARG002 (the first way: it makes the context)
        """Stack K and V."""
        return stack_texts([state(entry, Text).kv[entry.index] for entry in entries])

    def act(self, forward: Forward) -> None:
        """Stack the time embeddings of each entry's own step."""
        forward.emb = torch.stack(
            [state(entry, Text).emb[entry.index, entry.step] for entry in forward.entries]
        )

    def _look_up(
        self, request: GenerateRequest, text: str, clip_skip: int, model: Model
    ) -> TextInput:
        prompt = model.prompt(text)
        variant = (f"clip_skip {clip_skip}", *text_variant(request, model))
        key = text_fingerprint(text, model.text_fingerprint, variant)
        found = self._cache.get(key, model.text_layout(prompt.length), model.dtype)
        return TextInput(key, prompt, clip_skip, found)

    def _same_length(self, job: Preparation, branches: list[Embedding]) -> list[Embedding]:
        """Texts of both branches with as many tokens: the shorter one is followed by empty ones."""
        lengths = [branch["tokens"].shape[1] for branch in branches if "tokens" in branch]
        if len(set(lengths)) < len(branches):
            return branches
        nothing = job.model.encode_text(job.model.prompt(""), 0)["tokens"]
        padded: list[Embedding] = []
        for branch, length in zip(branches, lengths, strict=True):
            count = (max(lengths) - length) // nothing.shape[1]
            padded.append(
                {**branch, "tokens": torch.cat([branch["tokens"], *[nothing] * count], 1)}
            )
        return padded

    def _encode(self, job: Preparation, text: TextInput) -> Embedding:
        # Another job with the same text may have been encoded since the inputs were gathered.
        found = text.embedding or self._cache.peek(text.key)
        if found is not None:
            return {name: to_device(part, job.model.device) for name, part in found.items()}
        made = job.model.encode_text(text.prompt, text.clip_skip)
        on_cpu = {name: part.cpu() for name, part in made.items()}
        self._cache.put(text.key, on_cpu)
        job.fresh.append((self._cache, text.key, on_cpu))
        return made


def _warn_of_guidance(job: Preparation) -> None:
    request = job.request
    if request.guided and not any(job.guided):
        job.warn_of_window(request.guidance_start, request.guidance_end, "guidance_start")
    elif request.negative_prompt and not request.guided:
        job.warn(
            "negative-prompt-unused",
            "`negative_prompt` has no effect without guidance: a `guidance_scale` above 1",
        )
