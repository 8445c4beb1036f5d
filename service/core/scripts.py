"""Loads the Lua scripts of `service/core/lua`.

Each file documents its KEYS, its ARGV and its answer. KEYS holds every key that a script touches.
A line `-- include NAME` puts the text of another file before it.
"""

import re
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "lua"


def load(name: str) -> str:
    """The text of one script, for `redis.register_script`."""
    text = (FOLDER / f"{name}.lua").read_text("utf-8")
    included = re.findall(r"^-- include (\w+)$", text, re.MULTILINE)
    return "\n".join([*map(load, included), text])
