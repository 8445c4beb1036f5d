"""The vocabulary as the two files a CLIPTokenizer is made of: vocab.json and merges.txt.

Each word of the captions is one token; any other text falls apart into bytes, as CLIP's does.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from transformers import CLIPTokenizer

from training.architecture import MAX_TOKENS
from training.captions import WORDS

END_OF_WORD = "</w>"
MARKERS = ("<|startoftext|>", "<|endoftext|>")


def _byte_symbols() -> list[str]:
    """Give GPT-2's printable stand-in for each byte (the byte-level alphabet CLIP uses)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def _split(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """Split a word as byte-pair encoding does: the earliest merge first."""
    parts = [*word[:-1], word[-1] + END_OF_WORD]
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        rank, at = min((merges.get(pair, len(merges)), at) for at, pair in enumerate(pairs))
        if rank == len(merges):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _merges() -> list[tuple[str, str]]:
    """Join what earlier merges leave of each word, from the left, until it is one token."""
    merges: dict[tuple[str, str], int] = {}
    for word in WORDS:
        while len(parts := _split(word, merges)) > 1:
            merges[parts[0], parts[1]] = len(merges)
    return list(merges)


def write(directory: Path) -> CLIPTokenizer:
    """Write the two files to `directory` and return the tokenizer they make."""
    symbols = _byte_symbols()
    merges = _merges()
    tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols)]
    tokens += dict.fromkeys(left + right for left, right in merges)
    tokens += MARKERS
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (directory / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n")
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(directory)
    return tokenizer
