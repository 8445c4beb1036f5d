"""The HTTP side of the image-prompt service. It must never import torch or `workers`."""
