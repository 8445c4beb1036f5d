"""Structured logs of API and workers: one line an event, as JSON or text, through structlog.

Loggers of libraries (uvicorn, rq, diffusers), warnings and uncaught exceptions go the same way.
Configure logs before a library is imported that logs while it is imported.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

from service.core.settings import LogFormat

WARNING_CHARACTERS: Final = 300
"""Of the text of a warning; more of it may come from a file that a client sent."""


class _LibraryLogger(logging.Logger):
    """A logger that keeps no handler of its own, so that its lines reach the root's."""

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802  the base class's name
        """Do nothing, unless it is the root's."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, True if name == "propagate" else value)


def configure(level: str = "INFO", log_format: LogFormat = LogFormat.JSON) -> None:
    """Send every log line of this process to standard error in one format."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format is LogFormat.JSON:
        final: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        # Its own choice of tracebacks would show local variables, API keys among them.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        final = [renderer]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    _take_over()


def mute_library_warnings(*names: str) -> None:
    """Log only errors of these libraries from now on: their warnings print the text of jobs."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)


def _take_over() -> None:
    """Let nothing else of the process write lines of its own."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars, in libraries imported from now on
    logging.setLoggerClass(_LibraryLogger)
    loggers: Iterable[Any] = logging.root.manager.loggerDict.values()
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            logger.handlers, logger.propagate = [], True
    warnings.showwarning = _OncePerPlace()
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


class _OncePerPlace:
    """Logs the first warning of each line of code."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG002  of `warnings.showwarning`
        line: str | None = None,  # noqa: ARG002  as above
    ) -> None:
        """As `warnings.showwarning`."""
        if (filename, lineno) not in self._seen:
            self._seen.add((filename, lineno))
            structlog.get_logger("warnings").warning(
                "warning",
                category=category.__name__,
                text=str(message)[:WARNING_CHARACTERS],
                source=f"{filename}:{lineno}",
            )


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("uncaught").critical(
        "uncaught exception", exc_info=(kind, error, traceback)
    )
