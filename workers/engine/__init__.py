"""The engine: rows of latents batched by step. Knows nothing of Redis, RQ, storage or HTTP."""
