"""What the API and the workers agree on. It imports neither fastapi nor torch."""
