"""What Prometheus and Grafana are given, and the tool that keeps their copies equal."""
