"""`edge-pslora verify` and `apply`: the device's side of signed updates."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_pslora.cli import model_options as m
from edge_pslora.cli import options as o
from edge_pslora.cli.output import columns, fraction, print_result, printable
from edge_pslora.errors import UsageError
from edge_pslora.units import format_size, parse_duration

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A bundle: its folder, its .tar file, or http://HOST/PATH."
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="SOURCE",
        help="A bundle: its folder, its .tar file, or http://HOST/PATH. Default: none, go on with what "
        "is pending.",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="FILE",
        help="root.json: who may sign. Needed the first time, and pinned then.",
    ),
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        help="The device's workspace: what it trusts and has counts too.",
    ),
]
DeviceClass = Annotated[
    str | None,
    typer.Option(
        "--device-class",
        metavar="NAME",
        help="The class of this device, pinned the first time. Default then: default.",
    ),
]
HealthCommand = Annotated[
    str | None,
    typer.Option(
        "--health-check",
        metavar="COMMAND",
        help="Ends with 0 when the new model is fit to serve; three failures bring the old one back. "
        "Run without a shell, with EDGE_PSLORA_MODEL and others set. Without it the model stays on trial.",
    ),
]
HealthTimeout = Annotated[
    str, typer.Option("--health-timeout", metavar="TIME", help="Most time for one check.")
]
HealthInterval = Annotated[
    str, typer.Option("--health-interval", metavar="TIME", help="From a failed check to the next.")
]
NoCheck = Annotated[
    bool, typer.Option("--no-check", help="End the trial without a health check: the model stays.")
]


def verify(
    source: SourceArgument,
    root: RootOption = None,
    workspace: WorkspaceOption = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Check a signed bundle: signatures, expiry, every byte. Changes nothing."""
    from edge_pslora.signing.extra import require_signing

    require_signing()
    from edge_pslora.device.verify import verify as check

    facts = check(source, root, workspace).to_dict()
    rows = [
        ("bundle", f"{facts['kind']}, counter {facts['counter']}"),
        ("generation", f"{facts['generation']} of its maker, task {facts['task']}"),
        ("for", ", ".join(facts["device_classes"])),
        ("signed", f"{facts['signed_at']}, by enough keys of root {facts['root_version']}"),
        ("expires", facts["expires"]),
        ("payload", f"{facts['files']} files, {format_size(facts['bytes'])}, all as signed"),
    ]
    if facts["taken"]:
        rows.append(("this device", "has taken it already"))
    print_result(facts, [facts["source"], *columns(rows)], as_json=as_json)


def apply(
    workspace: o.WorkspaceArgument = m.DEFAULT_WORKSPACE,
    source: From = None,
    root: RootOption = None,
    device_class: DeviceClass = None,
    health_check: HealthCommand = None,
    health_timeout: HealthTimeout = "60s",
    health_interval: HealthInterval = "10s",
    no_check: NoCheck = False,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Take a signed bundle, or go on with one that was interrupted or is on trial.

    Exit code 3: refused by this device's own samples or its health check, and the old model serves.
    """
    from edge_pslora.signing.extra import require_signing

    require_signing()
    from edge_pslora.device.apply import Request
    from edge_pslora.device.apply import apply as take
    from edge_pslora.device.health import parse_check

    if health_check is not None and no_check:
        raise UsageError(
            "--no-check",
            expected="it or --health-check",
            found="both",
            remedy="leave one of them out",
        )
    timeout = parse_duration(health_timeout, "--health-timeout")
    interval = parse_duration(health_interval, "--health-interval")
    check = None if health_check is None else parse_check(health_check, timeout, interval)
    request = Request(workspace, source, root, device_class, check, no_check)
    report = take(request, _say).to_dict()
    print_result(report, _describe(workspace, report), as_json=as_json)


def _say(line: str) -> None:
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


def _describe(workspace: Path, facts: dict[str, Any]) -> list[str]:
    served = "nothing" if facts["generation"] is None else f"generation {facts['generation']}"
    rows = [("served", served), ("counter", str(facts["counter"]))]
    if facts["bundle"] is not None:
        rows.append(("bundle", f"{facts['bundle']['kind']}, counter {facts['bundle']['counter']}"))
    gate = facts["gate"]
    if gate is not None and gate["anchors"]:
        before, after = fraction(gate["anchor_before"]), fraction(gate["anchor_after"])
        rows.append(("own samples", f"{before} before, {after} after, {gate['anchors']} of them"))
    elif gate is not None:
        rows.append(("own samples", f"none to judge by, but it runs: {gate['note']}"))
    if facts["attempts"]:
        rows.append(("health checks", str(facts["attempts"])))
    return [f"{workspace}: {facts['reason']}", *columns(rows)]
