"""The GPU side of the image-prompt service. It must never import fastapi or `service` beyond core."""
