"""What the command lines of real sites share: how they speak, fail and find a site's folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

SiteFolder = Annotated[
    Path,
    typer.Option(
        "--folder", envvar="FEDFACE_SITE", help="The site's folder, made by `fedface site init`."
    ),
]


def fail(message: str, code: int) -> NoReturn:
    """Says what is wrong and ends the process with ``code``."""
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


def say(message: str) -> None:
    """Prints one line at once."""
    typer.echo(message)
    sys.stdout.flush()


@contextmanager
def errors() -> Iterator[None]:
    """Ends the process with one line: code 2 for files and settings, 1 for what went wrong."""
    from fedface.config import ConfigError

    try:
        yield
    except ConfigError as error:
        fail(str(error), code=2)
    except KeyboardInterrupt:
        fail("stopped", code=130)
    except (ValueError, OSError, RuntimeError) as error:
        fail(str(error), code=1)
