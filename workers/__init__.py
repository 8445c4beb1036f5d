"""The GPU side of the service. It must never import fastapi or `service` beyond core."""

import os

# How long an idle OpenMP thread of torch stays awake: about 0.1 ms, longer than what lies between
# two operators, where libgomp's own 300,000 rounds are 3 to 15 ms. Beside a process that keeps a
# core busy every operator may wait that long: a job of 1.3 s took over a minute. libgomp reads it
# when torch is first imported. Measured in docs/engine.md.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
