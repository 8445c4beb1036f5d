"""`python -m bench`: the engine beside plain diffusers and one-at-a-time serving, in one run.

`--gpu` takes full-size SDXL of random weights (`make bench-gpu`); `--gpu --tiny` tries that same
command on a tiny model where there is no GPU; `--no-compile` is IMAGEPROMPT_COMPILE=false, as the
image `cuda` has it, and goes to files of its own. Writes a table, a chart and JSON to out/bench/.
"""

import argparse
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from bench.engine import peak, report, service, subject
from bench.engine.contenders import PlainProcess
from bench.engine.gpu import CompiledPlain, GpuBench
from bench.engine.measures import Bench, Results
from bench.engine.plain import Plain
from bench.engine.subject import Subject
from service.core.catalog import Catalog
from service.core.settings import Device
from workers.engine.api import NullObserver, Options
from workers.engine.device import CPU_THREADS
from workers.engine.engine import Engine, load_engine

OUT: Final = Path("out/bench")


class Recompiles(NullObserver):
    """Counts compilations after warm-up."""

    def __init__(self) -> None:
        self.count = 0

    def on_recompile(self) -> None:
        """See `workers.engine.api.Observer`."""
        self.count += 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the bench that the command line, or a test's `arguments`, asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="full-size SDXL; needs CUDA")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: a tiny model, any device")
    parser.add_argument("--no-compile", action="store_true", help="on CUDA: nothing is compiled")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--repeats", type=int, default=0, help="of each part; 0: the subject's own")
    parser.add_argument("--no-service", action="store_true", help="leave the HTTP part out")
    parser.add_argument("--only", action="append", default=[], help="a part's name; repeatable")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.gpu and not options.tiny and not torch.cuda.is_available():
        sys.exit("bench: --gpu needs a CUDA device; add --tiny to try the command without one")
    name = "gpu" if options.gpu else "engine"
    name += "-uncompiled" if options.no_compile else ""
    with tempfile.TemporaryDirectory(prefix="imageprompt-bench-") as scratch:
        chosen = _subject(options.gpu, options.tiny)(Path(scratch))
        if options.repeats:
            chosen = replace(chosen, repeats=options.repeats)
        for results, about in run(
            chosen,
            gpu=options.gpu,
            compiled=not options.no_compile,
            threads=options.threads or CPU_THREADS,
            with_service=not options.no_service,
            only=options.only,
        ):
            path = report.write(options.out, name, results, about)
    print(path.read_text(encoding="utf-8"))
    print(f"written to {path.parent.resolve()}: {name}.md, {name}.json, {name}.png")


def _subject(gpu: bool, tiny: bool) -> Callable[[Path], Subject]:  # noqa: FBT001 (two flags of one command)
    if not gpu:
        return subject.bundled
    return subject.tiny_size if tiny else subject.full_size


def run(
    chosen: Subject,
    *,
    gpu: bool,
    compiled: bool,
    threads: int,
    with_service: bool,
    only: Sequence[str] = (),
) -> Iterator[tuple[Results, dict[str, Any]]]:
    """Measure everything on one subject.

    Yields after each part the results so far and what they were made on, so that a run that is
    broken off has not been for nothing.
    """
    started = time.perf_counter()
    catalog = chosen.catalog
    recompiles = Recompiles()
    device = Device.AUTO if gpu else Device.CPU
    options = Options(observer=recompiles, on_stage=print, threads=threads)
    engine = load_engine(catalog, options, device=device, compile=compiled)
    loaded = time.perf_counter()
    engine.warm_up()
    warm = time.perf_counter()
    about: dict[str, Any] = {
        "subject": chosen.title,
        "device": _device(engine.device),
        "torch": f"{torch.__version__}, {threads} CPU threads",
        "compiled": "yes" if compiled and engine.device == "cuda" else "no",
        "one job alone": f"{_size(chosen.single)}, {chosen.steps} steps",
        "jobs at once": f"{_size(chosen.burst)}, {chosen.burst_steps} steps",
        "median of": f"{chosen.repeats} runs",
        "load and warm-up": f"{loaded - started:.1f} s and {warm - loaded:.1f} s",
        "rate at full batches": f"{engine.row_steps_per_second:.1f} row-steps/s",
    }
    plain = _plain(catalog, engine, threads)
    processes = [plain(kind) for kind in ((Plain, CompiledPlain) if gpu else (Plain,))]
    bench = (GpuBench if gpu else Bench)(chosen, engine, *processes)
    for part in bench.run(only):
        print(f"measuring: {part}", flush=True)
        about["recompiles while serving"] = recompiles.count
        about["whole run"] = f"{time.perf_counter() - started:.0f} s"
        if bench.results.figures:
            yield bench.results, about
    engine.stop()
    for process in processes:
        process.stop()
    results = bench.results
    about["recompiles while serving"] = recompiles.count
    if (
        "one job alone" in results.figures
        and engine.device == "cuda"
        and chosen.single == (1024, 1024)
    ):
        rate = peak.measured_tflops()
        about["matrix peak"] = f"{rate:.0f} TFLOP/s measured"
        for who, seconds in results.figures["one job alone"].items():
            about[f"share of the peak, {who}"] = f"{peak.share(chosen.steps, seconds, rate):.0%}"
    yield results, about
    if with_service:
        print("measuring: the service around the model", flush=True)
        seconds = service.cost(chosen, compiled=compiled)
        results.add("service around the model", "s", {"HTTP to job done": seconds})
    about["whole run"] = f"{time.perf_counter() - started:.0f} s"
    yield results, about


def _plain(catalog: Catalog, engine: Engine, threads: int) -> Callable[[type[Plain]], PlainProcess]:
    """Makes pipelines over the engine's model, with what its `ip_target`s are for them."""
    entry = catalog.models[catalog.default]
    model: Any = engine.models[catalog.default]
    targets = {**model.ip_targets(model.unet), **entry.ip_targets}
    scales = {target: blocks.model_dump() for target, blocks in targets.items()}
    device = torch.device(engine.device)
    return lambda kind: PlainProcess(kind, threads, entry, device, scales)


def _device(kind: str) -> str:
    return (
        torch.cuda.get_device_name()
        if kind == "cuda"
        else f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


if __name__ == "__main__":
    main()
