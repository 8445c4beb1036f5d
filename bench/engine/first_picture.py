"""Load an engine as a worker does and make one picture: `MODELS WIDTH HEIGHT`."""

import sys
from pathlib import Path

from service.core.catalog import load_catalog
from service.core.settings import Device
from workers.engine.api import Options
from workers.engine.engine import load_engine
from workers.engine.warmup import job


def main(models: Path, width: int, height: int) -> None:
    """Start, warm up, make the picture and stop."""
    catalog = load_catalog(models)
    engine = load_engine(catalog, Options(), device=Device.AUTO)
    engine.warm_up()
    name = catalog.default
    adapter = catalog.models[name].defaults.adapter
    wanted = job(name, engine.models[name], size=(width, height), adapter=adapter)
    engine.submit(wanted).result()
    engine.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
