"""The engine beside plain diffusers and one-at-a-time serving, on the same weights in one run."""
