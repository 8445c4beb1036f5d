"""The engine: jobs of different people batched step by step on one device.

`load_engine` makes one; the worker around it calls `start`, `warm_up`, `submit` and `stop`. How
rows share a batch is in `step_loop.py`, what steers them in `conditioning/`, which of them take the
next step in `batch_policy.py`.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import torch

from service.core import malloc
from service.core.catalog import Catalog, ModelEntry
from service.core.errors import ConfigurationError, EngineFault, JobFailed, UnservableRequest
from service.core.params import GenerateRequest
from service.core.settings import AttentionBackend, Device
from workers.engine import schedulers, warmup
from workers.engine.api import (
    Canceled,
    EngineDied,
    EngineJob,
    EngineTicket,
    Listener,
    NullObserver,
    Options,
    Ticket,
)
from workers.engine.attention import choose_kernel
from workers.engine.batch import Batcher
from workers.engine.batch_policy import BatchCaps, choose_cap
from workers.engine.cache import EmbeddingCache
from workers.engine.compile import CompiledNetworks, Networks
from workers.engine.conditioning import conditionings
from workers.engine.decode import Decoder, Finisher
from workers.engine.determinism import set_cudnn_benchmark
from workers.engine.device import CPU_THREADS, choose_device, set_threads
from workers.engine.inputs import JobPreparer
from workers.engine.models import FAMILIES, hub
from workers.engine.models.base import Loader, Model
from workers.engine.preview import Previews
from workers.engine.rows import Work, now
from workers.engine.step_loop import StepLoop

log = logging.getLogger(__name__)

DIED: Final = EngineFault("The engine has lost its device; its log has the cause.")
INPUT_THREADS: Final = 4
FINISH_THREADS: Final = 2


class Engine:
    """Takes jobs from any thread and steps them together on one.

    `models` are the loaded models by name, `networks` and `batchers` what runs their batches;
    `row_steps_per_second` is the rate measured at warm-up at full batches of the default model (0
    before), in batch entries.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        default: str,
        options: Options,
        *,
        device: torch.device,
        networks: Callable[[Model], Networks] = Networks,
    ) -> None:
        observer = options.observer
        self.models = models
        self.row_steps_per_second = 0.0
        self._default = default
        self._device = device
        self._on_stage = options.on_stage
        images = EmbeddingCache(options.cache_entries, options.store, observer.on_embedding_lookup)
        texts = EmbeddingCache(options.cache_entries, options.store)
        ways = conditionings(images, texts, observer)
        self._numbers = itertools.count()
        self._open: set[Work] = set()
        self._lock = threading.Lock()
        self._started = False
        self._stopped = False
        self._dead = False
        self._inputs = ThreadPoolExecutor(INPUT_THREADS, thread_name_prefix="engine-inputs")
        self._previews = Previews(options.preview_every_steps)
        self._finisher = Finisher(FINISH_THREADS)
        self.decoder = Decoder(device, observer.on_out_of_memory)
        self.preparer = JobPreparer(ways, self._finisher.share)
        self.caps = BatchCaps(2 * options.slots)
        self.networks = {name: networks(model) for name, model in models.items()}
        self.batchers = {
            name: Batcher(self.networks[name], ways, observer.on_out_of_memory) for name in models
        }
        self.loop = StepLoop(
            device=device,
            batchers=self.batchers,
            caps=self.caps,
            preparer=self.preparer,
            decoder=self.decoder,
            finisher=self._finisher,
            previews=self._previews,
            observer=observer,
            threads=options.threads,
            job_timeout_seconds=options.job_timeout_seconds,
            on_death=self._die,
        )

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self._device.type

    @property
    def busy(self) -> bool:
        """Whether any job is open, from the reading of its inputs to its last picture."""
        return bool(self._open)

    @property
    def last_step_at(self) -> float:
        """Monotonic time (seconds) of the last finished step; an idle engine keeps it fresh."""
        return self.loop.last_step_at

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs; once it has died the process must be restarted."""
        # A thread that dies still runs while it ends its jobs.
        return self.loop.alive and not self._dead

    def start(self) -> None:
        """Start the engine's threads, once."""
        with self._lock:
            if not self._started:
                self._started = True
                self.loop.start()

    def warm_up(self) -> None:
        """Start, run real jobs of every class, and measure how large batches may be.

        Each model runs a job with each adapter, each ControlNet and each warm size. Raises what
        such a job raises.
        """
        self.start()
        self.loop.ask(partial(set_cudnn_benchmark, enabled=True))
        for name, model in self.models.items():
            rate = self._profile(name, model)
            self._on_stage(f"warming {name}")
            for job in warmup.classes(name, model):
                self.submit(job).result()
            self.networks[name].seal()
            if name == self._default:
                self.row_steps_per_second = rate
        self.loop.ask(partial(set_cudnn_benchmark, enabled=False))

    def _profile(self, name: str, model: Model) -> float:
        """Set the caps of a model's sizes; returns its entries per second at its default size."""
        defaults = model.entry.defaults
        default = (defaults.width, defaults.height)
        profiler = warmup.Profiler(name, model, self.batchers[name], self.preparer)
        rates = {}
        for width, height in {default, *model.entry.warm_sizes}:
            self._on_stage(f"profiling {name} at {width} x {height}")
            measured = self.loop.ask(partial(profiler.seconds, (width, height), self.caps.limit))
            cap = self._prepare(name, model, (width, height), choose_cap(measured))
            self.caps.set(name, height, width, cap)
            rates[width, height] = cap / measured[cap]
        colours = self.loop.ask(partial(profiler.colours, self.decoder, default))
        self._previews.learn(name, colours)
        return rates[default]

    def _prepare(self, name: str, model: Model, size: tuple[int, int], cap: int) -> int:
        """Compile for batches of every power of two up to `cap`, where anything is compiled.

        Returns the largest of them that fits into memory, or the two entries of a guided row.
        """
        self._on_stage(f"preparing {name} at {size[0]} x {size[1]}")
        factor = model.scale_factor
        counts = [1 << power for power in range(cap.bit_length())]
        networks = self.networks[name]
        prepare = partial(networks.prepare, size[1] // factor, size[0] // factor, counts)
        return max(2, self.loop.ask(prepare))

    def serves(self, request: GenerateRequest) -> bool:
        """Whether everything that a request names is loaded here."""
        model = self.models.get(request.model)
        if model is None:
            return False
        try:
            self.preparer.check(request, model)
        except UnservableRequest:
            return False
        return True

    def submit(self, job: EngineJob, listener: Listener | None = None) -> Ticket:
        """Accept a job and return at once. Any thread may call it.

        What is wrong with the job is raised by `Ticket.result`.
        """
        model = self.models.get(job.request.model)
        ticket = EngineTicket()
        if model is None:
            ticket.fail(
                UnservableRequest(f"`model` {job.request.model} is not served by this worker")
            )
            return ticket
        work = Work(
            job=job,
            model=model,
            ticket=ticket,
            listener=listener or NullObserver(),
            arrival=next(self._numbers),
            submitted_at=now(),
        )
        with self._lock:
            if self._stopped or self._dead:
                ticket.fail(EngineDied() if self._dead else Canceled())
                return ticket
            self._open.add(work)
            ticket.on_end = lambda: self._end(work)
            self._inputs.submit(self._gather, work)
        return ticket

    def stop(self) -> None:
        """End the threads; jobs that are still open raise `Canceled`. Once is enough."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            open_jobs = list(self._open)
        for work in open_jobs:
            work.ticket.fail(Canceled())
        self._inputs.shutdown(cancel_futures=True)
        self.loop.stop()
        self._finisher.stop()

    def _gather(self, work: Work) -> None:
        """Gather a job's inputs, on an input thread, and pass it to the step loop."""
        if work.ticket.done:
            return
        try:
            work.gathered = self.preparer.gather(work.job, work.model)
        except JobFailed as error:
            work.ticket.fail(error)
        except Exception:
            log.exception("the inputs of job %s could not be read", work.job.id)
            work.ticket.fail(EngineFault("The job's inputs could not be read."))
        else:
            self.loop.add(work)

    def _die(self) -> None:
        """End all jobs after the thread died; other workers may try them again."""
        with self._lock:
            self._dead = True
            open_jobs = list(self._open)
        for work in open_jobs:
            work.ticket.fail(DIED)

    def _end(self, work: Work) -> None:
        with self._lock:
            self._open.discard(work)
        self.loop.wake()


def load_engine(
    catalog: Catalog,
    options: Options,
    *,
    device: Device = Device.AUTO,
    attention: AttentionBackend = AttentionBackend.AUTO,
    compile: bool = True,  # noqa: A002 (the setting's name)
    families: Mapping[str, Loader] = FAMILIES,
) -> Engine:
    """Load and check every model of a catalog.

    float16 on CUDA with the attention kernel that is fastest there, float32 and SDPA on a CPU.
    `compile` acts on CUDA only. Raises `ConfigurationError` where files are missing or do not
    fit together.
    """
    target = choose_device(device)
    kernel = choose_kernel(attention, target)
    # On a CPU the step loop's thread alone uses more than one.
    set_threads(1 if target.type == "cpu" else options.threads or CPU_THREADS)
    if target.type == "cpu":
        malloc.keep_freed()
    models = {
        name: hub.reading(
            f"model {name} of models.yaml",
            _loader(name, entry, families),
            name,
            entry,
            device=target,
            kernel=kernel,
            on_stage=options.on_stage,
        )
        for name, entry in catalog.models.items()
    }
    for name, model in models.items():
        schedulers.check(model.scheduler_config, model.latent_channels, name)
    networks: Callable[[Model], Networks] = Networks
    if compile and target.type == "cuda":
        networks = partial(CompiledNetworks, on_recompile=options.observer.on_recompile)
    return Engine(models, catalog.default, options, device=target, networks=networks)


def _loader(name: str, entry: ModelEntry, families: Mapping[str, Loader]) -> Loader:
    if entry.family not in families:
        raise ConfigurationError(
            f"models.yaml: `family` of {name} is {entry.family}, not one of {', '.join(families)}"
        )
    return families[entry.family]
