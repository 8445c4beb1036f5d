"""Webhooks: signed notifications of ended jobs, from a durable outbox."""
