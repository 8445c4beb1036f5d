"""One finished job as the OpenAPI document shows it."""

from typing import Any, Final

EXAMPLE_ID: Final = "6f0f1e1c-6a5e-4f0b-9a53-0d8b7a2c1e4d"

JOB_EXAMPLE: Final[dict[str, Any]] = {
    "id": EXAMPLE_ID,
    "status": "succeeded",
    "created_at": "2026-01-01T12:00:00Z",
    "started_at": "2026-01-01T12:00:00.400Z",
    "completed_at": "2026-01-01T12:00:03.100Z",
    "expires_at": "2026-01-02T12:00:03.100Z",
    "queue_position": None,
    "eta_seconds": None,
    "progress": {"step": 30, "total": 30},
    "input": {
        "image": [{"sha256": "ab" * 32, "width": 640, "height": 480}],
        "image_weights": [1.0],
        "prompt": "a watercolour",
        "negative_prompt": "",
        "control_image": None,
        "control_type": None,
        "control_scale": None,
        "control_start": None,
        "control_end": None,
        "ip_scale": 0.5,
        "crop": "center",
        "model": "sdxl",
        "adapter": "plus",
        "width": 1024,
        "height": 1024,
        "steps": 30,
        "guidance_scale": 7.5,
        "guidance_end": 1.0,
        "scheduler": "ddim",
        "seed": 7,
        "num_images": 1,
        "output_format": "png",
        "deterministic": False,
        "webhook_url": None,
    },
    "images": [
        {
            "url": f"https://images.example.org/jobs/{EXAMPLE_ID}/images/0",
            "content_type": "image/png",
            "width": 1024,
            "height": 1024,
            "seed": 7,
            "sha256": "cd" * 32,
        }
    ],
    "error": None,
    "metrics": {
        "queue_seconds": 0.4,
        "encode_seconds": 0.0,
        "denoise_seconds": 2.3,
        "decode_seconds": 0.2,
        "upload_seconds": 0.1,
        "total_seconds": 3.1,
        "max_batch": 8,
        "image_embedding_cache": "hit",
    },
    "urls": {
        "self": f"https://images.example.org/jobs/{EXAMPLE_ID}",
        "cancel": f"https://images.example.org/jobs/{EXAMPLE_ID}/cancel",
        "events": f"https://images.example.org/jobs/{EXAMPLE_ID}/events",
    },
}
