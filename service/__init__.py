"""The HTTP side of the image-prompt service. It must never import torch or `workers`."""

__version__ = "0.1.0"
