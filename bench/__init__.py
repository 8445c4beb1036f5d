"""Measurements: the engine, the HTTP layer, workers side by side, and a cluster on paper."""
