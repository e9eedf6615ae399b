"""What an operator submits: a run's configuration, carried in Flower's run config and thin bundle.

The bundle (FAB) holds no code: it names two apps of the installed fedface.
"""

import json
from dataclasses import dataclass
from importlib.metadata import version

from flwr.app import Context
from flwr.cli.build import build_fab_from_files

from fedface.config import ConfigError, parse_config
from simulations.deploy.plan import Deployment
from simulations.schema import RunConfig

SERVER_APP = "simulations.deploy.server_app:app"
CLIENT_APP = "simulations.deploy.site_app:app"
DEFAULTS: dict[str, str | bool] = {"config": "", "resume": False, "version": ""}
"""The run config: the run as JSON, whether to continue it, and the fedface that it is for."""

MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Order:
    """One run to do.

    Attributes:
        config: The run; it has a deployment and neither attack nor variants.
        resume: Whether to continue it from its last checkpoint.
    """

    config: RunConfig
    resume: bool = False

    @property
    def deployment(self) -> Deployment:
        """Who takes part."""
        return deployment_of(self.config)

    def run_config(self) -> dict[str, str | bool]:
        """Returns the values that Flower carries to the server and the sites."""
        return {
            "config": self.config.model_dump_json(),
            "resume": self.resume,
            "version": version("fedface"),
        }


def deployment_of(config: RunConfig) -> Deployment:
    """Returns the run's deployment.

    Raises:
        ConfigError: If the run has none, or what real sites cannot do.
    """
    found = config.deployment
    if found is None:
        raise ConfigError(f"{config.name}: deployment: needed for real sites, found none")
    if config.attack is not None:
        raise ConfigError(
            f"{config.name}: attack: needs to be null for real sites (a site's own red_team plays "
            f"one), found {config.attack.name}"
        )
    if config.compare is not None:
        raise ConfigError(f"{config.name}: compare: needs to be null for real sites, found one")
    return found


def read_order(context: Context) -> Order:
    """Returns what ``context`` asks for; nothing in it is trusted.

    Raises:
        ConfigError: If it is no valid order, or one for another version of fedface.
    """
    text = context.run_config.get("config")
    wanted, here = context.run_config.get("version"), version("fedface")
    if wanted != here:
        raise ConfigError(f"run: needed fedface {here}, as installed here, found {wanted!r}")
    if not isinstance(text, str) or not 0 < len(text) <= MAX_CHARACTERS:
        raise ConfigError("run: needed a configuration of at most a million characters")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"run: needed a configuration as JSON, found: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"run: needed a configuration, found {type(content).__name__}")
    config = parse_config(content, RunConfig, "run")
    deployment_of(config)
    return Order(config, context.run_config.get("resume") is True)


def bundle() -> bytes:
    """Returns the Flower app bundle (FAB) of this version of fedface; always the same bytes."""
    fab, _ = build_fab_from_files({"pyproject.toml": _project().encode()})
    return fab


def _project() -> str:
    values = "".join(f"{name} = {json.dumps(value)}\n" for name, value in DEFAULTS.items())
    return (
        f'[project]\nname = "fedface"\nversion = "{version("fedface")}"\n\n'
        f'[tool.flwr.app]\npublisher = "fedface"\n\n'
        f'[tool.flwr.app.components]\nserverapp = "{SERVER_APP}"\nclientapp = "{CLIENT_APP}"\n\n'
        f"[tool.flwr.app.config]\n{values}"
    )
