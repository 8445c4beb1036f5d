"""The GPU side of the service. It must never import fastapi or `service` beyond core."""
