"""`imageprompt`: the commands. Errors are one line on standard error.

Exit status 0 for success, 2 for wrong usage, 130 after Ctrl-C, 1 for any other error. After Ctrl-C
a job that was submitted is canceled.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imageprompt import ClientError, Unavailable
from service import __version__
from service.cli import demo as demo_command
from service.cli import generate as generate_command
from service.cli import jobs as job_commands
from service.cli import keys as keys_command
from service.cli.generate import JobInterrupted
from service.cli.processes import RedisServerError
from service.cli.up import DATA, StartError, running
from service.core.errors import ConfigurationError

WRONG_USE = 2
console = Console(stderr=True)

app = typer.Typer(
    name="imageprompt",
    help="Generate pictures from pictures: an image-prompt service and its client.",
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=(
        "Exit status: 0 for success, 2 for wrong usage, 130 after Ctrl-C (a submitted job is "
        "canceled), 1 for any other error."
    ),
)
app.command("generate")(generate_command.command())
app.command("again")(generate_command.again)
app.command("demo")(demo_command.demo)
for job_command in (job_commands.jobs, job_commands.show, job_commands.cancel, job_commands.delete):
    app.command()(job_command)
app.add_typer(keys_command.app, name="keys")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Generate pictures from pictures: an image-prompt service and its client."""
    if version:
        typer.echo(f"imageprompt {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def up(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the API; 0 for any free one.")
    ] = 8000,
    data: Annotated[Path, typer.Option(help="Folder for all data and logs.")] = DATA,
    workers: Annotated[int, typer.Option(help="Number of worker processes.", min=1)] = 1,
    fsync_always: Annotated[
        bool,
        typer.Option("--fsync-always", help="Let Redis write to disk before it responds."),
    ] = False,
) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    with running(
        data, port=port, workers=workers, console=console, fsync_always=fsync_always
    ) as service:
        console.print(f"[bold green]ready[/]: the page at [bold]{service.url}[/]")
        console.print(f"API console: {service.url}/docs", soft_wrap=True)
        console.print(f"data and logs in {data.resolve()}; Ctrl-C stops everything", soft_wrap=True)
        command = sys.argv[0] if "/" in sys.argv[0] else "imageprompt"
        where = "" if data == DATA else f" --redis $(cat {service.redis_url_file})"
        console.print(f"API keys: {command} keys create NAME{where}", style="dim", soft_wrap=True)
        service.run()
        console.print("stopping: running jobs finish or are requeued for the next start")


def main() -> None:
    """Run the command line."""
    try:
        status = app(standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message(), WRONG_USE)
    except Unavailable as error:
        advice = "start the service with `imageprompt up`, or set its address with --url"
        _fail(f"{error}; {advice}", 1)
    except (ClientError, ConfigurationError, StartError, RedisServerError) as error:
        _fail(str(error), 1)
    except JobInterrupted as interrupt:
        _fail(str(interrupt), 130)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    sys.exit(status or 0)


def _fail(message: str, status: int) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"imageprompt: {line}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
