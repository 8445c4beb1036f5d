"""A loaded engine on the tiny model, jobs for it, and the plain pipelines to compare it with."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import pytest
import torch
from PIL import Image

from bench.engine.plain import Plain
from service.core.catalog import Catalog, load_catalog
from service.core.params import Control, GenerateRequest, ImagePrompt
from service.core.settings import Device
from workers.engine.api import EngineJob, EngineResult, Options
from workers.engine.engine import Engine, load_engine
from workers.engine.rows import Row, Work
from workers.engine.silent import Silent
from workers.engine.warmup import digest, noise

SIZE = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let diffusers' Euler and UniPC schedulers hand tensors to NumPy 2 as they do."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            reason = "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
            item.add_marker(pytest.mark.filterwarnings(reason))


class Counts(Silent):
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


class Steps(Silent):
    """A listener that remembers what it heard and does something at a step."""

    def __init__(self, at: int = 0, action: Callable[[], None] = lambda: None) -> None:
        self.heard: list[tuple[int, int]] = []
        self._at = at
        self._action = action

    def on_step(self, step: int, total: int) -> None:
        self.heard.append((step, total))
        if step == self._at:
            self._action()


@pytest.fixture(scope="session")
def catalog(tiny_catalog: Path) -> Catalog:
    """The tiny model's catalog."""
    return load_catalog(tiny_catalog)


@pytest.fixture
def observer(engine_and_observer: tuple[Engine, Counts]) -> Counts:
    """What the shared engine's observer has heard since the test began."""
    _, counts = engine_and_observer
    Counts.__init__(counts)
    return counts


@pytest.fixture(scope="session")
def engine_and_observer(catalog: Catalog) -> Iterator[tuple[Engine, Counts]]:
    """A started engine; caps are left at the number of slots."""
    counts = Counts()
    engine = load_engine(catalog, Options(slots=8, threads=1, observer=counts), device=Device.CPU)
    engine.start()
    yield engine, counts
    engine.stop()


@pytest.fixture
def engine(engine_and_observer: tuple[Engine, Counts]) -> Engine:
    """The engine that most tests share."""
    return engine_and_observer[0]


@pytest.fixture(scope="session")
def plain(catalog: Catalog) -> Plain:
    """The plain pipelines over the same files."""
    return Plain(catalog.models["tiny"], torch.device("cpu"))


def request(
    images: int = 1, control: dict[str, Any] | None = None, **fields: Any
) -> GenerateRequest:
    """A request on the tiny model; every field may be given."""
    prompts = tuple(
        ImagePrompt(
            key=f"inputs/job/{index}.png",
            sha256="0" * 64,
            pixels_sha256=digest(picture(index)),
            width=SIZE,
            height=SIZE,
        )
        for index in range(images)
    )
    defaults: dict[str, Any] = {
        "model": "tiny",
        "adapter": "base",
        "images": prompts,
        "ip_scale": 0.7,
        "width": SIZE,
        "height": SIZE,
        "steps": 4,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
        "seed": 7,
    }
    if control is not None:
        map_key = {"key": "inputs/job/map.png", "sha256": "0" * 64, "type": "outline"}
        defaults["control"] = Control(**map_key, **control)
    return GenerateRequest(**{**defaults, **fields})


def picture(index: int) -> Image.Image:
    """Image prompt `index` of every test job."""
    return noise(90, index)


def control_map() -> Image.Image:
    """The ControlNet map of every test job."""
    return noise(SIZE, 99)


def read(key: str) -> Image.Image:
    """The upload under a key of `request`."""
    name = PurePosixPath(key).stem
    return control_map() if name == "map" else picture(int(name))


def job(wanted: GenerateRequest, name: str = "job") -> EngineJob:
    """A job whose uploads are at hand."""
    return EngineJob(name, wanted, read)


class Rows:
    """Remembers the rows of an engine, to compare finished ones before they are rounded."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows: dict[str, list[Row]] = {}
        self._rows_of = engine._admission.rows_of
        engine._admission.rows_of = self._remember

    def _remember(self, work: Work) -> list[Row]:
        self._rows[work.job.id] = rows = self._rows_of(work)
        return rows

    def of(self, name: str) -> list[Row]:
        """The rows of a job."""
        return self._rows[name]

    def decoded(self, name: str) -> np.ndarray:
        """The pictures of a job as floats of 0 to 1, `(pictures, height, width, 3)`."""
        model = self._engine.models["tiny"]
        latents = torch.cat([row.latents for row in self._rows[name]])
        with torch.no_grad():
            decoded = torch.cat(
                [
                    model.vae.decode(one / model.vae.config.scaling_factor).sample
                    for one in latents.clone().split(1)
                ]
            )
        return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.fixture
def rows(engine: Engine) -> Iterator[Rows]:
    """The rows of jobs that come during a test."""
    remembered = Rows(engine)
    yield remembered
    engine._admission.rows_of = remembered._rows_of


class Arrivals:
    """Counts the jobs whose inputs have been gathered: the engine takes them in next."""

    def __init__(self, engine: Engine) -> None:
        self._stepper = engine._stepper
        self._admit = engine._stepper.admit
        self._gathered = threading.Semaphore(0)

    def __enter__(self) -> Self:
        self._stepper.admit = self._count
        return self

    def __exit__(self, *_error: object) -> None:
        del self._stepper.admit

    def wait_for(self, jobs: int) -> None:
        """Wait until the inputs of `jobs` more jobs have been gathered."""
        for _ in range(jobs):
            assert self._gathered.acquire(timeout=60)

    def _count(self, work: Work) -> None:
        self._admit(work)
        self._gathered.release()


class Gate(Arrivals):
    """Holds an engine between two steps while jobs are handed in, so that they start together."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._open = threading.Event()
        self._shut = threading.Event()

    def __enter__(self) -> Self:
        self._stepper.call(self._hold)
        assert self._shut.wait(60)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._open.set()

    def _hold(self) -> None:
        self._shut.set()
        assert self._open.wait(120)
        self._stepper._step_seconds = 60.0  # so long no step is due: all are taken in before one


def together(engine: Engine, jobs: Sequence[EngineJob]) -> list[EngineResult]:
    """Run jobs that all start at once."""
    with Gate(engine) as gate:
        tickets = [engine.submit(each) for each in jobs]
        gate.wait_for(len(jobs))
    return [ticket.result(60) for ticket in tickets]
