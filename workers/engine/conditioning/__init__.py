"""Ways to steer a row. Each is a file here and a line in `conditionings`; the order matters."""

from workers.engine.api import Observer
from workers.engine.cache import EmbeddingCache
from workers.engine.conditioning.base import Conditioning
from workers.engine.conditioning.control import ControlMaps
from workers.engine.conditioning.image_prompt import ImagePrompts
from workers.engine.conditioning.init_image import InitImage
from workers.engine.conditioning.lora import Loras
from workers.engine.conditioning.text import Text


def conditionings(
    images: EmbeddingCache, texts: EmbeddingCache, observer: Observer
) -> tuple[Conditioning, ...]:
    """Every way, for one engine. `images` and `texts` cache embeddings."""
    return (
        Loras(),  # before all that runs a network
        Text(texts),  # others use its embeddings
        ImagePrompts(images, observer),
        ControlMaps(),
        InitImage(),
    )
