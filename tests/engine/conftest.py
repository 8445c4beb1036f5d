"""An engine on the tiny model, stepped by hand, and the plain pipelines to compare it with."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.engine.plain import Plain
from service.core.catalog import Catalog, load_catalog
from service.core.param_types import StoredUpload
from service.core.params import GenerateRequest
from service.core.settings import Device
from tests.running import until
from workers.engine.api import EngineJob, EngineResult, Listener, NullObserver, Options, Ticket
from workers.engine.engine import Engine, load_engine
from workers.engine.rows import Row
from workers.engine.warmup import digest, noise

SIZE = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let diffusers' Euler and UniPC schedulers hand tensors to NumPy 2 as they do."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            reason = "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
            item.add_marker(pytest.mark.filterwarnings(reason))


class Counts(NullObserver):
    """An observer that counts."""

    def __init__(self) -> None:
        self.forwards: list[int] = []
        self.lookups: list[str] = []
        self.encoder_runs = 0
        self.out_of_memory = 0

    def on_forward(self, model: str, rows: int) -> None:
        self.forwards.append(rows)

    def on_embedding_lookup(self, level: str) -> None:
        self.lookups.append(level)

    def on_encoder_run(self) -> None:
        self.encoder_runs += 1

    def on_out_of_memory(self) -> None:
        self.out_of_memory += 1


class Steps(NullObserver):
    """A listener that remembers what it was told and does something at a step."""

    def __init__(self, at: int = 0, action: Callable[[], None] = lambda: None) -> None:
        self.heard: list[tuple[int, int]] = []
        self._at = at
        self._action = action

    def on_step(self, step: int, total: int) -> None:
        self.heard.append((step, total))
        if step == self._at:
            self._action()


class Stepper:
    """An engine whose turns the test takes itself; remembers every row that took part.

    The final latents of a job's rows are compared before they are rounded to a picture.
    """

    def __init__(self, engine: Engine, observer: Counts | None = None) -> None:
        self.engine = engine
        self.loop = engine.loop
        self.observer = observer or Counts()
        self._rows: dict[str, dict[int, Row]] = {}

    def submit(self, job: EngineJob, listener: Listener | None = None) -> Ticket:
        """Submit a job; it starts in one of the next turns."""
        return self.engine.submit(job, listener)

    def submit_all(self, *jobs: EngineJob | tuple[EngineJob, Listener]) -> list[Ticket]:
        """Submit jobs and make rows of all of them, so that they take their first step together."""
        before = len(self.loop.waiting)
        tickets = [self.engine.submit(*(job if isinstance(job, tuple) else (job,))) for job in jobs]
        self.gather(before + len(jobs))
        self.loop.prepare(float("inf"))
        return tickets

    def gather(self, jobs: int) -> None:
        """Wait until the inputs of so many jobs are gathered."""

        def gathered() -> bool:
            self.loop.receive()
            return len(self.loop.waiting) >= jobs

        until(gathered, what="the inputs of the jobs")

    def turn(self) -> None:
        """Take one turn."""
        self.loop.turn()
        for row in (*self.loop.rows, *self.loop.decoding):
            self._rows.setdefault(row.work.job.id, {})[row.index] = row

    def finish(self, *tickets: Ticket) -> list[EngineResult]:
        """Take turns until every ticket has ended; raises what the first failed one raises."""
        for ticket in tickets:
            while not ticket.done:
                self.turn()
        return [ticket.result(0) for ticket in tickets]

    def run(self, job: EngineJob, listener: Listener | None = None) -> EngineResult:
        """Run one job to its end. Rows of an earlier job of that name are forgotten."""
        self._rows.pop(job.id, None)
        return self.finish(self.submit(job, listener))[0]

    def together(self, *jobs: EngineJob) -> list[EngineResult]:
        """Run jobs that all start at once."""
        return self.finish(*self.submit_all(*jobs))

    def rows_of(self, name: str) -> list[Row]:
        """The rows of a job, in order."""
        return [row for _, row in sorted(self._rows[name].items())]

    def decoded(self, name: str) -> np.ndarray:
        """The pictures of a job as floats of 0 to 1, `(pictures, height, width, 3)`."""
        rows = self.rows_of(name)
        with torch.no_grad():
            decoded = torch.cat([row.work.model.decode(row.latents.clone()) for row in rows])
        return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().numpy()

    def difference(self, name: str, other: str) -> float:
        """The largest difference between the pictures of two jobs, of full scale."""
        return float(np.abs(self.decoded(name) - self.decoded(other)).max())


@pytest.fixture(scope="session")
def catalog(tiny_catalog: Path) -> Catalog:
    """The tiny model's catalog."""
    return load_catalog(tiny_catalog)


@pytest.fixture(scope="session")
def loaded(catalog: Catalog) -> Iterator[Engine]:
    """An engine that is not started; others are made from its models."""
    engine = load_engine(catalog, Options(threads=1), device=Device.CPU)
    yield engine
    engine.stop()


@pytest.fixture
def make_engine(loaded: Engine) -> Iterator[Callable[..., Engine]]:
    """Call it for a new engine over the tiny model; the arguments are those of `Options`."""
    engines = []

    def make(**options: Any) -> Engine:
        engine = Engine(
            loaded.models,
            "tiny",
            Options(**{"slots": 8, "threads": 1, **options}),
            device=torch.device("cpu"),
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture
def stepper(make_engine: Callable[..., Engine]) -> Stepper:
    """A new engine that the test steps by hand; caps are left at the number of slots."""
    observer = Counts()
    return Stepper(make_engine(observer=observer), observer)


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """A new engine that runs on its own thread."""
    engine = make_engine()
    engine.start()
    return engine


@pytest.fixture(scope="session")
def plain(catalog: Catalog) -> Plain:
    """The plain pipelines over the same files."""
    return Plain(catalog.models["tiny"], torch.device("cpu"))


def request(
    images: int = 1, control: dict[str, Any] | None = None, **fields: Any
) -> GenerateRequest:
    """A request on the tiny model; every field may be given."""
    prompts = uploads(*range(images))
    defaults: dict[str, Any] = {
        "model": "tiny",
        "adapter": "base",
        "image": prompts,
        "image_weights": (1.0,) * images,
        "ip_scale": 0.7,
        "width": SIZE,
        "height": SIZE,
        "steps": 4,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "seed": 7,
    }
    if control is not None:
        parts = {"type": "outline", "scale": 1.0, "start": 0.0, "end": 1.0} | control
        defaults["control_image"] = uploads(*parts.pop("image", ["map"]))
        defaults |= {f"control_{part}": value for part, value in parts.items()}
    return GenerateRequest(**{**defaults, **fields})


def uploads(*names: str | int) -> tuple[StoredUpload, ...]:
    """Stored uploads by the names that `read` knows."""
    return tuple(
        StoredUpload(
            key=f"inputs/job/{name}.png",
            sha256="0" * 64,
            pixels_sha256=digest(read(f"inputs/job/{name}.png")),
            width=SIZE,
            height=SIZE,
        )
        for name in names
    )


def picture(index: int) -> Image.Image:
    """Image prompt `index` of every test job."""
    return noise(90, index)


def control_map() -> Image.Image:
    """The ControlNet map of every test job."""
    return noise(SIZE, 99)


def mask(side: str) -> Image.Image:
    """White on one side, black elsewhere."""
    drawn = Image.new("RGB", (SIZE, SIZE))
    boxes = {"left": (0, 0, 28, 64), "right": (28, 0, 64, 64), "middle": (20, 12, 50, 44)}
    boxes["nothing"] = (0, 0, 0, 0)
    drawn.paste("white", boxes[side])
    return drawn


def read(key: str) -> Image.Image:
    """The upload under a key of `request`: a number, `map`, `init`, or a side of `mask`."""
    name = PurePosixPath(key).stem
    if name.isdigit():
        return picture(int(name))
    drawn = {"map": control_map, "map2": lambda: noise(SIZE, 98), "init": lambda: noise(SIZE, 97)}
    return drawn[name]() if name in drawn else mask(name)


def job(wanted: GenerateRequest, name: str = "job") -> EngineJob:
    """A job whose uploads can be read."""
    return EngineJob(name, wanted, read)
