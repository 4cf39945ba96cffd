"""Where configuration comes from: a YAML file, the environment, flags; weak to strong.

Owns merging, relative paths and turning every complaint into a ``FieldError``. Knows nothing of
what the fields mean. Environment names are ``INFERENCE_UNLIMITED_`` and the path in upper case
with ``__`` between its parts; their values are read as YAML.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from artifacts.protocol import FieldError
from server.config.access import problems_of_access
from server.config.budgets import problems
from server.config.errors import ConfigError, nearest
from server.config.fields import NAME_PATTERN, Config, ServerSection
from server.config.speculations import problems_of_speculation
from server.routing import ROUTED

ENVIRONMENT_PREFIX = "INFERENCE_UNLIMITED_"
MAX_FILE_BYTES = 1 << 20

# TARGET is the client commands'; the others Kubernetes puts into every pod of a namespace once a
# Service there is named after this project.
_NOT_CONFIG = re.compile(r"^(TARGET|TOKEN|SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_.+)?)$")

# Fields that hold a path; in a file they are relative to that file.
_PATHS = (
    ("calibration", "text"),
    ("evaluation", "text"),
    ("store",),
    ("optimizer", "optimum_python"),
    ("search", "storage"),
    ("server", "tls", "certificate"),
    ("server", "tls", "key"),
    ("server", "tls", "client_ca"),
)


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, which would silently drop a variant."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - the base class's signature
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load(path: Path, *, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Read and merge all sources.

    Args:
        path: The YAML file.
        environment: Where ``INFERENCE_UNLIMITED_...`` variables are looked up.
        flags: Dotted path to value; ``None`` means not given, ``Unset`` takes a value away.

    Raises:
        ConfigError: with every error of every field.
    """
    merged = _absolute(_read(path), path.resolve().parent)
    origins: dict[tuple[str, ...], str] = {}
    for name, keys, value in _from_environment(environment):
        _overlay(merged, keys, value)
        origins[keys] = name
    for dotted, value in flags.items():
        if value is not None:
            keys = tuple(dotted.split("."))
            _overlay(merged, keys, None if value is Unset else value)
            origins[keys] = f"--{keys[-1].replace('_', '-')}"
    merged = _without_empty_sections(merged)
    errors = list(_across_fields(merged))
    try:
        config = Config.model_validate(merged)
    except ValidationError as failure:
        errors = [_field_error(error, origins) for error in failure.errors()] + errors
    if errors:
        raise ConfigError(str(path), list(dict.fromkeys(errors)), merged)
    return config


class Unset:
    """As a flag's value: take away what weaker sources say."""


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refused(path, f"is larger than {MAX_FILE_BYTES} bytes", "Is it a config file?")
        text = path.read_text(encoding="utf-8")
    except OSError as failure:
        raise _refused(
            path, f"cannot be read: {failure.strerror}", "Name a YAML file that exists."
        ) from failure
    except UnicodeDecodeError as failure:
        raise _refused(path, "is not UTF-8 text", "Is it a config file?") from failure
    try:
        content = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader, made stricter
    except yaml.YAMLError as failure:
        raise _refused(path, f"is not valid YAML: {_yaml_problem(failure)}", "") from failure
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _refused(path, "must hold a mapping of keys to values", "Begin with `model: demo`.")
    return content


def _yaml_problem(failure: yaml.YAMLError) -> str:
    if isinstance(failure, yaml.MarkedYAMLError) and failure.problem_mark is not None:
        mark = failure.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {failure.problem}"
    return " ".join(str(failure).split())


def _refused(path: Path, message: str, remedy: str) -> ConfigError:
    return ConfigError(
        str(path), [FieldError(path="", message=f"{path} {message}.", remedy=remedy)]
    )


def _absolute(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the file's relative paths absolute."""
    for keys in _PATHS:
        parent: Any = content
        for key in keys[:-1]:
            parent = parent.get(key) if isinstance(parent, dict) else None
        value = parent.get(keys[-1]) if isinstance(parent, dict) else None
        if isinstance(value, str) and "://" not in value:  # a database's address is no path
            parent[keys[-1]] = str(folder / Path(parent[keys[-1]]).expanduser())
    admin = content.get("admin")
    roots = admin.get("roots") if isinstance(admin, dict) else None
    if isinstance(admin, dict) and isinstance(roots, list):
        admin["roots"] = [
            str(folder / Path(root).expanduser()) if isinstance(root, str) else root
            for root in roots
        ]
    server = content.get("server")
    tokens = server.get("tokens") if isinstance(server, dict) else None
    for token in tokens if isinstance(tokens, list) else ():
        if isinstance(token, dict) and isinstance(token.get("file"), str):
            token["file"] = str(folder / Path(token["file"]).expanduser())
    model = content.get("model")
    if isinstance(model, str) and model.startswith(("./", "../", "~/")):
        content["model"] = str((folder / Path(model).expanduser()).resolve())
    return content


def _from_environment(
    environment: Mapping[str, str],
) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        rest = name.removeprefix(ENVIRONMENT_PREFIX)
        if _NOT_CONFIG.match(rest):
            continue
        try:
            value = yaml.load(environment[name], Loader=_StrictLoader)  # noqa: S506 - as above
        except yaml.YAMLError:
            value = environment[name]
        yield name, tuple(part.lower() for part in rest.split("__")), value


def _overlay(target: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        below = target.get(key)
        if not isinstance(below, dict):
            # A variant that is no mapping is its chain, which another field of it leaves alone.
            is_chain = depth == 1 and keys[0] == "variants" and below is not None
            below = target[key] = {"chain": below} if is_chain else {}
        target = below
    target[keys[-1]] = value


def _without_empty_sections(content: dict[str, Any]) -> dict[str, Any]:
    """``engine:`` with nothing under it means its defaults."""
    return {
        key: value
        for key, value in content.items()
        if not (value is None and isinstance(_default(key), BaseModel))
    }


def _default(key: str) -> Any:
    field = Config.model_fields.get(key)
    return None if field is None else field.default


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys of the section that holds ``location``."""
    section: type[BaseModel] = Config
    for part in location[:-1]:
        # The part of a mapping's path that is a name chosen by the user is no field.
        if (field := section.model_fields.get(str(part))) is not None:
            section = next(_sections(field.annotation))
    return list(section.model_fields)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation allows, alone, beside other types or in a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _sections(part)


def _field_error(error: Any, origins: Mapping[tuple[str, ...], str]) -> FieldError:
    location = tuple(error["loc"])
    is_key = location[-1:] == ("[key]",)
    location = location[:-1] if is_key else location
    path = ".".join(str(part) for part in location)
    origin = origins.get(tuple(str(part) for part in location))
    said = f" (from {origin})" if origin else ""
    if error["type"] == "extra_forbidden":
        known = _known_keys(location)
        return FieldError(
            path=path,
            message=f"unknown key{said}",
            remedy=f"Known keys here: {', '.join(sorted(known))}.",
            nearest=nearest(str(location[-1]), known),
        )
    if error["type"] == "missing":
        return FieldError(path=path, message=f"is required{said}", remedy="Add it.")
    if is_key:
        return FieldError(
            path=path,
            message="is not a valid variant name",
            remedy=f"Use a name that matches {NAME_PATTERN}.",
        )
    message = error["msg"][:1].lower() + error["msg"][1:]
    return FieldError(path=path, message=f"{message}, got {_short(error['input'])}{said}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _across_fields(content: Mapping[str, Any]) -> Iterator[FieldError]:
    """What no single field can know; looks only at values of the right type."""
    yield from problems(content)
    yield from problems_of_speculation(content)
    variants, traffic = content.get("variants"), content.get("traffic")
    if isinstance(variants, dict) and ROUTED in variants:
        yield FieldError(
            path=f"variants.{ROUTED}",
            message="is what some clients call the traffic that is routed by weight",
            remedy="Choose another name.",
        )
    if isinstance(variants, dict) and isinstance(traffic, dict):
        names = [str(name) for name in variants]
        for name in traffic:
            if name not in variants:
                yield FieldError(
                    path=f"traffic.{name}",
                    message="no such variant",
                    remedy=f"Configured variants: {', '.join(names)}.",
                    nearest=nearest(str(name), names),
                )
        if traffic and all(weight == 0 for weight in traffic.values()):
            yield FieldError(
                path="traffic",
                message="all weights are 0",
                remedy="Give at least one variant a weight above 0, or leave `traffic` away.",
            )
    server = content.get("server")
    if isinstance(server, dict):
        defaults = ServerSection()
        yield from problems_of_access(server)
        taken: dict[Any, str] = {}
        for name in ("grpc_port", "http_port", "ops_port"):
            port = server.get(name, getattr(defaults, name))
            if port and (other := taken.setdefault(port, name)) != name:
                yield FieldError(
                    path=f"server.{name}",
                    message=f"is the same as server.{other} ({port})",
                    remedy="Give each listener a port of its own.",
                )
