"""Measurements: the engine, the HTTP layer, workers side by side, and a cluster on paper."""

import workers  # noqa: F401 (sets what OpenMP reads when torch is imported, as in a worker)
