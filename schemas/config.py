"""YAML into frozen dataclasses: typed, with defaults, and an unknown key is an error that names the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def load_config(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """A config file as `cls`, after `a.b=c` overrides (values are YAML).

    Raises:
        ValueError: no such file, no mapping, an unknown key (with the nearest known one), a value of the wrong type.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ValueError(f"{path}: cannot be read as YAML: {e}") from e
    return parse_config(cls, {} if data is None else data, overrides, where=str(path))


def parse_config(cls: type[T], data: Any, overrides: Sequence[str] = (), *, where: str = "config") -> T:
    """As `load_config`, from a mapping at hand."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: must be a mapping of keys to values, not {type(data).__name__}")
    data = _copy(data)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ValueError(f"--set {override}: must look like a.b=value")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as e:
            raise ValueError(f"--set {override}: not a YAML value: {e}") from e
        _set(data, key.split("."), parsed, override)
    _check_keys(cls, data, where)
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as e:
        lines = [f"{'.'.join(str(p) for p in err['loc'])}: {err['msg']}" for err in e.errors()]
        raise ValueError(f"{where}: " + "; ".join(lines)) from e


def _copy(data: Mapping) -> dict:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def _set(data: dict, path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise ValueError(f"--set {override}: {key} is a value, not a section")
    data[path[-1]] = value


def _check_keys(cls: Any, data: Mapping, where: str, prefix: str = "") -> None:
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known here: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key '{prefix}{key}'; {hint}")
        section = next((hint for hint in (hints[key], *get_args(hints[key])) if is_dataclass(hint)), None)  # also one that may be null
        if section is not None and isinstance(value, Mapping):
            _check_keys(section, value, where, f"{prefix}{key}.")
