"""From a request's body to a queued job."""
