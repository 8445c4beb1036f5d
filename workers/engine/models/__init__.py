"""Model families. `models.yaml` names an entry's family; a new one is a file and a line here."""

from collections.abc import Mapping
from typing import Final

from workers.engine.models import sd15, sdxl
from workers.engine.models.base import Loader

FAMILIES: Final[Mapping[str, Loader]] = {"sdxl": sdxl.load, "sd15": sd15.load}
