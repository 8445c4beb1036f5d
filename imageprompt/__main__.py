"""The command `imageprompt`, also as `python -m imageprompt`.

The command line needs the extra `api`; the client alone does not have it.
"""

import sys


def main() -> None:
    """Run the command line, or say what it lacks."""
    try:
        from service.cli.main import main as run  # noqa: PLC0415 - what the client alone lacks
    except ModuleNotFoundError as error:
        sys.exit(
            f"imageprompt: the command line needs the package {error.name}, which is not installed;"
            " install the project with its extra `api`: pip install '.[api]'"
        )
    run()


if __name__ == "__main__":
    main()
