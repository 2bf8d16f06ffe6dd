"""`--config FILE`: values for options that the command line leaves out. Flags win."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_pslora.cli.options import OUTPUT
from edge_pslora.errors import InputError, UsageError
from edge_pslora.workspace.reading import read_limited

MAX_BYTES = 1 << 20
_MAX_SLOW = 1 << 14  # of YAML and TOML, whose parsers are slow; there are some seventy options
_MAX_NESTING = 500  # brackets in a YAML file: its parser takes their square in time
_MAX_PARTS = 8  # of a TOML key, likewise
_NOT_IN_A_FILE = {"config", "help", "json", "debug"}


def read_config(path: Path) -> dict[str, Any]:
    """The top-level table of a .toml, .json, .yaml or .yml file.

    Raises:
        UsageError: the file is missing, too long, of another kind, not valid or not a table.
    """
    kind = path.suffix.lower()
    if kind not in (".toml", ".json", ".yaml", ".yml"):
        raise _wrong(path, "a name ending in .toml, .json, .yaml or .yml", repr(path.name))
    most = MAX_BYTES if kind == ".json" else _MAX_SLOW
    try:
        data = read_limited(path, most, error=InputError)
    except InputError as error:
        raise _wrong(path, error.expected, error.found) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, "UTF-8 text", str(error)) from error
    values = _parse(path, kind, text)
    if not isinstance(values, dict):
        raise _wrong(path, "options and their values", f"a {type(values).__name__}")
    return values


def _parse(path: Path, kind: str, text: str) -> Any:
    if kind in (".yaml", ".yml"):
        return _parse_yaml(path, text)
    parse = tomllib.loads if kind == ".toml" else json.loads
    if kind == ".toml" and any(
        line.partition("=")[0].count(".") > _MAX_PARTS for line in text.splitlines()
    ):
        raise _wrong(path, "keys of one part", "keys with many dots")
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:  # both libraries' own errors are ValueErrors
        raise _wrong(path, f"valid {kind[1:].upper()}", str(error)) from error


def _parse_yaml(path: Path, text: str) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--config {path}",
            expected="PyYAML, to read YAML",
            found="it is not installed",
            remedy="run pip install 'edge-pslora[yaml]', or write the file as TOML or JSON",
        ) from error
    # what its constructors raise for values that their tags do not fit
    odd = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
    if text.count("[") + text.count("{") > _MAX_NESTING:
        raise _wrong(path, f"at most {_MAX_NESTING} lists", "more")
    try:
        # an alias stands for a value that was given before: ten lines of them stand for a gigabyte
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise _wrong(path, "every value written out", "an alias (*name)")
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, *odd) as error:
        raise _wrong(path, "valid YAML", str(error) or type(error).__name__) from error


def load_defaults(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's values the defaults of the command's options (a callback of `--config`)."""
    if path is None:
        return None
    options = {
        flag[2:]: parameter
        for parameter in ctx.command.params
        for flag in parameter.opts
        if flag.startswith("--") and flag[2:] not in _NOT_IN_A_FILE
    }
    defaults: dict[str, Any] = {}
    for key, value in read_config(path).items():
        name = str(key).replace("_", "-")
        if name not in options:
            raise UsageError(
                f"--config {path}",
                expected="options of this command: " + ", ".join(sorted(options)),
                found=f"the unknown key {str(key)!r}",
                remedy="remove or correct that key",
            )
        parameter = options[name]
        if value is not None:
            is_flag = bool(getattr(parameter, "is_flag", False))
            defaults[str(parameter.name)] = _value(path, name, value, is_flag, parameter.multiple)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _value(path: Path, name: str, value: Any, is_flag: bool, repeatable: bool) -> Any:
    """The value as the command line would give it, so that both are checked by the same code."""
    if is_flag:
        if isinstance(value, bool):
            return value
        raise _wrong(path, f"true or false for {name}", repr(value))
    if repeatable:
        return [_scalar(path, name, v) for v in (value if isinstance(value, list) else [value])]
    return _scalar(path, name, value)


def _scalar(path: Path, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _wrong(path, f"a number or text for {name}", repr(value))
    return str(value)


def _wrong(path: Path, expected: str, found: str) -> UsageError:
    return UsageError(
        f"--config {path}", expected=expected, found=found, remedy="correct the file or the option"
    )


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        is_eager=True,
        callback=load_defaults,
        help="TOML, JSON or YAML file with values for these options; flags win.",
        rich_help_panel=OUTPUT,
    ),
]
