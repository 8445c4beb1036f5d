"""The engine: jobs of different people batched step by step on one device.

`load_engine` makes one; the worker around it calls `start`, `warm_up`, `submit` and `stop`. It
knows nothing of Redis, RQ, storage or HTTP. How rows share a batch is in `stepper.py`, what they
carry in `conditions.py`, who goes first in `policy.py`.
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
from service.core.catalog import Catalog
from service.core.errors import EngineFault, JobFailed, UnservableRequest
from service.core.params import GenerateRequest
from service.core.settings import AttentionBackend, Device
from workers.engine import caps, inputs, warmup
from workers.engine.admission import Admission
from workers.engine.api import Canceled, EngineDied, EngineJob, Listener, Options, Ticket
from workers.engine.backends import choose_device, choose_kernel
from workers.engine.batch import Batcher
from workers.engine.cache import EmbeddingCache
from workers.engine.caps import Caps
from workers.engine.compile import CompiledNetworks
from workers.engine.decode import Decoder
from workers.engine.determinism import find_the_fastest
from workers.engine.encoding import Encoders
from workers.engine.finishing import Finisher
from workers.engine.loading import LoadedModel, load_model
from workers.engine.networks import Networks
from workers.engine.previews import Previews
from workers.engine.rows import Work, now
from workers.engine.silent import Silent
from workers.engine.step_loop import Stepper
from workers.engine.ticket import EngineTicket

log = logging.getLogger(__name__)

DIED: Final = EngineFault("The engine has lost its device; its log has the cause.")
INPUT_THREADS: Final = 4
FINISH_THREADS: Final = 2


class Engine:
    """Takes jobs from any thread and steps them together on one.

    `models` are the loaded models by name; `row_steps_per_second` is the rate measured at
    warm-up at full batches of the default model (0 before), a row being one side of a picture.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        default: str,
        options: Options,
        *,
        device: torch.device,
        networks: Callable[[LoadedModel], Networks] = Networks,
    ) -> None:
        observer = options.observer
        self.models = models
        self.row_steps_per_second = 0.0
        self._default = default
        self._device = device
        self._on_stage = options.on_stage
        self._images = EmbeddingCache(
            options.cache_entries, options.store, observer.on_embedding_lookup
        )
        self._texts = EmbeddingCache(options.cache_entries, options.store)
        self._numbers = itertools.count()
        self._open: set[Work] = set()
        self._lock = threading.Lock()
        self._started = False
        self._stopped = False
        self._dead = False
        self._inputs = ThreadPoolExecutor(INPUT_THREADS, thread_name_prefix="engine-inputs")
        self._caps = Caps(2 * options.slots)
        self._previews = Previews(options.preview_every_steps)
        self._finisher = Finisher(FINISH_THREADS)
        self._decoder = Decoder(device, observer.on_out_of_memory)
        self._networks = {name: networks(model) for name, model in models.items()}
        self._batchers = {
            name: Batcher(self._networks[name], observer.on_out_of_memory) for name in models
        }
        encoders = Encoders(images=self._images, texts=self._texts, observer=observer)
        self._admission = Admission(encoders, self._finisher)
        self._stepper = Stepper(
            device=device,
            batchers=self._batchers,
            caps=self._caps,
            admission=self._admission,
            decoder=self._decoder,
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
        """Whether any job is in hand, from the reading of its inputs to its last picture."""
        return bool(self._open)

    @property
    def last_step_at(self) -> float:
        """Monotonic time (seconds) of the last finished step; an idle engine keeps it fresh."""
        return self._stepper.last_step_at

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs; once it has died the process must be restarted."""
        # A thread that dies still runs while it tells its jobs.
        return self._stepper.alive and not self._dead

    def start(self) -> None:
        """Start the engine's threads, once."""
        with self._lock:
            if not self._started:
                self._started = True
                self._stepper.start()

    def warm_up(self) -> None:
        """Start, run real jobs of every class, and measure how large batches may be.

        Each model runs a job with each adapter, each ControlNet and each warm size. Raises what
        such a job raises.
        """
        self.start()
        self._stepper.ask(partial(find_the_fastest, wanted=True))
        for name, model in self.models.items():
            rate = self._profile(name, model)
            self._on_stage(f"warming {name}")
            for job in warmup.classes(name, model):
                self.submit(job).result()
            self._networks[name].seal()
            if name == self._default:
                self.row_steps_per_second = rate
        self._stepper.ask(partial(find_the_fastest, wanted=False))

    def _profile(self, name: str, model: LoadedModel) -> float:
        """Set the caps of a model's sizes; returns its places per second at its default size."""
        defaults = model.entry.defaults
        default = (defaults.width, defaults.height)
        profiler = warmup.Profiler(name, model, self._batchers[name], self._admission.rows_of)
        rates = {}
        for width, height in {default, *model.entry.warm_sizes}:
            self._on_stage(f"profiling {name} at {width} x {height}")
            measured = self._stepper.ask(
                partial(profiler.seconds, (width, height), self._caps.limit)
            )
            cap = self._prepare(name, model, (width, height), caps.choose(measured))
            self._caps.set(name, height, width, cap)
            rates[width, height] = cap / measured[cap]
        if self._previews.wanted:
            colours = self._stepper.ask(partial(profiler.colours, self._decoder, default))
            self._previews.learn(name, colours)
        return rates[default]

    def _prepare(self, name: str, model: LoadedModel, size: tuple[int, int], cap: int) -> int:
        """Compile for batches of every power of two up to `cap`, where anything is compiled.

        Returns the largest of them that fits into memory, or the two places of a guided row.
        """
        self._on_stage(f"preparing {name} at {size[0]} x {size[1]}")
        factor = model.pipe.vae_scale_factor
        counts = [1 << power for power in range(cap.bit_length())]
        networks = self._networks[name]
        prepare = partial(networks.prepare, size[1] // factor, size[0] // factor, counts)
        return max(2, self._stepper.ask(prepare))

    def serves(self, request: GenerateRequest) -> bool:
        """Whether the model, adapter and ControlNet that a request names are loaded here."""
        model = self.models.get(request.model)
        if model is None or request.adapter not in model.adapters:
            return False
        return request.control is None or request.control.type in model.controlnets

    def submit(self, job: EngineJob, listener: Listener | None = None) -> Ticket:
        """Take a job in and return at once. Any thread may call it.

        What is wrong with the job comes out of `Ticket.result`, see `types.Ticket`.
        """
        model = self.models.get(job.request.model)
        ticket = EngineTicket()
        if model is None:
            ticket.fail(UnservableRequest(f"`model` {job.request.model} is not served here"))
            return ticket
        work = Work(
            job=job,
            model=model,
            ticket=ticket,
            listener=listener or Silent(),
            arrival=next(self._numbers),
            submitted_at=now(),
        )
        with self._lock:
            if self._stopped or self._dead or not self._started:
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
            held = list(self._open)
        for work in held:
            work.ticket.fail(Canceled())
        self._inputs.shutdown(cancel_futures=True)
        self._stepper.stop()
        self._finisher.stop()

    def _gather(self, work: Work) -> None:
        """Bring a job's inputs to hand (on a thread for inputs) and pass it on."""
        if work.ticket.done:
            return
        try:
            work.inputs = inputs.gather(
                work.job, work.model, images=self._images, texts=self._texts
            )
        except JobFailed as error:
            work.ticket.fail(error)
        except Exception:
            log.exception("the inputs of job %s could not be read", work.job.id)
            work.ticket.fail(EngineFault("The job's inputs could not be read."))
        else:
            self._stepper.admit(work)

    def _die(self) -> None:
        """The thread has died: nobody is left waiting, other workers may try the jobs again."""
        with self._lock:
            self._dead = True
            held = list(self._open)
        for work in held:
            work.ticket.fail(DIED)

    def _end(self, work: Work) -> None:
        with self._lock:
            self._open.discard(work)
        self._stepper.wake()


def load_engine(
    catalog: Catalog,
    options: Options,
    *,
    device: Device = Device.AUTO,
    attention: AttentionBackend = AttentionBackend.AUTO,
    compile: bool = True,  # noqa: A002 (the setting's name)
) -> Engine:
    """Load and check every model of a catalog.

    float16 on CUDA with the attention kernel that is fastest there, float32 and SDPA on a CPU.
    `compile` acts on CUDA only. Raises `ConfigurationError` where files are missing or do not
    fit together.
    """
    place = choose_device(device)
    kernel = choose_kernel(attention, place)
    if options.threads:
        torch.set_num_threads(options.threads)
    if place.type == "cpu":
        malloc.keep()
    models = {
        name: load_model(name, entry, device=place, kernel=kernel, on_stage=options.on_stage)
        for name, entry in catalog.models.items()
    }
    networks: Callable[[LoadedModel], Networks] = Networks
    if compile and place.type == "cuda":
        networks = partial(CompiledNetworks, on_recompile=options.observer.on_recompile)
    return Engine(models, catalog.default, options, device=place, networks=networks)
