"""Webhooks: signed notifications of what happened to jobs, from a durable outbox."""
