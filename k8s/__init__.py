"""Manifests for Kubernetes, and what generates parts of them."""
