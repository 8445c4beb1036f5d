"""Webhooks: told to the client's own server when a job has ended, whatever it takes."""
