"""Frozen, typed configuration read from YAML; errors name file, field, need and finding."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Base of every configuration: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


class ConfigError(ValueError):
    """A configuration file does not describe a valid run."""


ConfigT = TypeVar("ConfigT", bound=Config)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that stands twice in one mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks at the keys as written: merging (``<<``) repeats keys rightly, but only later."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in the YAML file ``path``.

    ``${NAME}`` in a text stands for the environment variable NAME, ``${NAME:-text}`` for it or
    else for the text.

    Raises:
        ConfigError: If the file is missing, is no YAML, repeats a key, holds no mapping, names a
            variable that is not set, or nests without end or into more than a million values.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path}: needed a readable file, found: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: needed UTF-8 text, found other bytes") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that is none
        raise ConfigError(f"{path}: needed YAML, found: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: needed settings, found values nested too deep") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: needed a mapping of fields, found {type(content).__name__}")
    if (n_values := _n_values(content, {})) > _MOST_VALUES:
        raise ConfigError(
            f"{path}: needed at most {_MOST_VALUES} values, found aliases that stand for {n_values}"
        )
    return {str(key): _expanded(value, f"{path}: {key}") for key, value in content.items()}


def parse_config(content: Mapping[str, Any], schema: type[ConfigT], source: str) -> ConfigT:
    """Returns ``content`` as a validated ``schema``; ``source`` stands first in each error line.

    Raises:
        ConfigError: One line per problem: source, field, what was needed and what was found.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = (
            f"{source}: {'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}, "
            f"found {_shortened(e['input'])}"
            for e in error.errors()
        )
        raise ConfigError("\n".join(problems)) from None


def load_config(path: Path, schema: type[ConfigT]) -> ConfigT:
    """Reads ``path`` and returns it as a validated ``schema``.

    Raises:
        ConfigError: One line per problem, each naming the file, the field and the value found.
    """
    return parse_config(read_yaml(path), schema, str(path))


_MOST_VALUES = 1_000_000


def _n_values(value: Any, known: dict[int, float]) -> float:
    """How many values ``value`` holds with its aliases written out; infinite if it holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # found again below itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_n_values(part, known) for part in parts)
    return known[id(value)]


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expanded(value: Any, where: str) -> Any:
    """``value`` with the environment variables in its texts replaced."""
    if isinstance(value, dict):
        return {key: _expanded(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, where) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise ConfigError(f"{where}: needed the environment variable {match[1]}, found none")
        return found

    return _VARIABLE.sub(replacement, value)


def _shortened(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
