"""A cluster on paper: arrivals, batching by step, cold starts and the autoscaler, simulated."""
