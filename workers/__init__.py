"""The GPU side of the service. It must never import fastapi or `service` beyond core."""

import os

# How many rounds an idle OpenMP thread of torch stays awake: about half a millisecond, longer than
# what lies between two operators. libgomp's own bound is 300,000 rounds, some 15 ms, which every
# operator may wait beside a process that keeps a core busy: eight jobs that take 1.5 s together did
# not end in 100 s. libgomp reads it when torch is first imported. Measured in docs/engine.md.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
