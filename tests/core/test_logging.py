"""Every line that a process writes is one JSON object."""

import json
import os
import subprocess
import sys

from service.core.settings import ROOT

SCRIPT = """
import logging, sys, threading, warnings
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler()), setattr(early, "propagate", False)
from service.core import logging as ours
from service.core.settings import LogFormat
ours.configure("INFO", LogFormat.JSON)
early.warning("of a library imported before")
late = logging.getLogger("late")
late.addHandler(logging.StreamHandler())
late.propagate = False
late.warning("of a library imported after")
for _ in range(3): warnings.warn("of Python")
ours.mute_library_warnings("late")
logging.getLogger("late.tokenizer").warning("a prompt")
logging.getLogger("late.tokenizer").error("of a muted library")
from tqdm import tqdm
for _ in tqdm(range(3)): pass
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(), thread.join()
raise ValueError("at the end")
"""


def test_libraries_warnings_and_exceptions_are_logged_as_json() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"},
    )
    assert run.stdout == ""
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("warning", "of a library imported before"),
        ("warning", "of a library imported after"),
        ("warning", "warning"),
        ("error", "of a muted library"),
        ("critical", "uncaught exception"),
        ("critical", "uncaught exception"),
    ]
    assert lines[2]["text"] == "of Python"
    assert "ZeroDivisionError" in lines[4]["exception"]
    assert "ValueError: at the end" in lines[5]["exception"]
