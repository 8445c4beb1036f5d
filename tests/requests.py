"""What a job asks for, where a test cares for few of its fields."""

from typing import Any

from service.core.param_types import Control, StoredUpload
from service.core.params import GenerateRequest

IMAGE = StoredUpload(
    key="uploads/a/image-0.png", sha256="ab" * 32, pixels_sha256="cd" * 32, width=8, height=8
)


def generate_request(**fields: object) -> GenerateRequest:
    """A small guided job on one image prompt; every field may be given."""
    images: Any = fields.get("image", (IMAGE,))
    defaults = {
        "model": "tiny",
        "adapter": "base",
        "image": images,
        "image_weights": (1.0,) * len(images),
        "ip_scale": 1.0,
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance_scale": 7.5,
        "scheduler": "ddim",
        "seed": 7,
    }
    return GenerateRequest.model_validate(defaults | fields)


def changed(request: GenerateRequest, **changes: Any) -> GenerateRequest:
    """The request with other values; `images` and `controls` stand for the fields behind them."""
    if "images" in changes:
        images = changes.pop("images")
        uploads = tuple(StoredUpload.model_validate(dict(one)) for one in images)
        changes |= {"image": uploads, "image_weights": tuple(one.weight for one in images)}
    if "controls" in changes:
        controls: tuple[Control, ...] = changes.pop("controls")
        changes["control_image"] = tuple(StoredUpload.model_validate(dict(one)) for one in controls)
        for part in ("type", "scale", "start", "end", "preprocess"):
            changes[f"control_{part}"] = tuple(getattr(control, part) for control in controls)
    return request.model_copy(update=changes)
