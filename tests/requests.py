"""What a job asks for, where a test cares for few of its fields."""

from service.core.params import GenerateRequest, ImagePrompt

IMAGE = ImagePrompt(
    key="uploads/a/image-0.png", sha256="ab" * 32, pixels_sha256="cd" * 32, width=8, height=8
)


def generate_request(**fields: object) -> GenerateRequest:
    """A small guided job on one image prompt; every field may be given."""
    defaults = {
        "model": "tiny",
        "adapter": "base",
        "images": (IMAGE,),
        "ip_scale": 1.0,
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance_scale": 7.5,
        "scheduler": "ddim",
        "seed": 7,
    }
    return GenerateRequest.model_validate(defaults | fields)
