"""What a job asks for, where a test cares for few of its fields."""

from typing import Any

from service.core.params import Control, GenerateRequest, StoredUpload

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
    """The request with other values; `images` and `control` stand for the fields behind them."""
    if "images" in changes:
        images = changes.pop("images")
        uploads = tuple(StoredUpload.model_validate(dict(one)) for one in images)
        changes |= {"image": uploads, "image_weights": tuple(one.weight for one in images)}
    if "control" in changes:
        control: Control | None = changes.pop("control")
        parts = ("type", "scale", "start", "end")
        changes["control_image"] = ()
        if control is not None:
            changes["control_image"] = (StoredUpload.model_validate(dict(control)),)
        changes |= {f"control_{part}": getattr(control, part, None) for part in parts}
    return request.model_copy(update=changes)
