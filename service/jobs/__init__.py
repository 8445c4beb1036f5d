"""Reading jobs: records, events, estimates, views."""
