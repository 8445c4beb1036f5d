"""The engine: rows of latents of different jobs, batched step by step."""
