"""A listener and observer for those who do not want to hear of anything."""

from typing import Literal

from PIL.Image import Image


class Silent:
    """Implements `types.Listener` and `types.Observer`; subclasses hear what they like."""

    def on_step(self, step: int, total: int) -> None:
        """See `types.Listener`."""

    def on_preview(self, step: int, image: Image) -> None:
        """See `types.Listener`."""

    def on_forward(self, model: str, rows: int) -> None:
        """See `types.Observer`."""

    def on_embedding_lookup(self, level: Literal["process", "store", "miss"]) -> None:
        """See `types.Observer`."""

    def on_encoder_run(self) -> None:
        """See `types.Observer`."""

    def on_recompile(self) -> None:
        """See `types.Observer`."""

    def on_out_of_memory(self) -> None:
        """See `types.Observer`."""
