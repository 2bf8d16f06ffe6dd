"""What examples/updaters/README.md says of files and places is what is there."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib

from tests.updaters.unit_files import environment_file, settings
from tests.updaters.updaters_kit import ROOT, SCRIPTS, UPDATERS

README = (UPDATERS / "README.md").read_text(encoding="utf-8")


def test_every_file_is_named_and_every_name_is_a_file():
    table = README[README.index("| file |") : README.index("`root.json`")]
    rows = [row.split("|")[1] for row in table.splitlines()[2:] if row.startswith("|")]
    named = set()
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        named |= {names[0].rsplit(".", 1)[0] + n if n.startswith(".") else n for n in names}
    named |= set(re.findall(r"`(rauc/[^`]+)`", table)) | {"README.md", "walk.py"}
    there = {path.relative_to(UPDATERS).as_posix() for path in UPDATERS.rglob("*")}
    files = {name for name in there if (UPDATERS / name).is_file() and "__pycache__" not in name}
    assert named == files


def test_places_on_the_device_are_those_that_the_files_expect():
    for place in re.findall(r"`(/[^`]+\.(?:conf|sh))`", README):
        folder, _, name = place.rpartition("/")
        texts = [path.read_text(encoding="utf-8") for path in SCRIPTS.values()]
        texts.append((UPDATERS / "common.sh").read_text(encoding="utf-8"))
        variable = "EDGE_PSLORA_CONF" if name.endswith(".conf") else "EDGE_PSLORA_LIB"
        default = place if name.endswith(".conf") else folder
        assert sum(f"${{{variable}:-{default}}}" in text for text in texts) > 0, place
    for unit in UPDATERS.glob("systemd/*.service"):
        assert settings(unit)["Service.EnvironmentFile"] == ["/etc/edge-pslora/update.conf"]
    shipped = environment_file(UPDATERS / "update.conf")
    for name in set(re.findall(r"`(EDGE_PSLORA_[A-Z_]+)`", README)):
        known = {f"EDGE_PSLORA_{end}" for end in ("MODEL", "GENERATION", "WORKSPACE")}
        assert name in shipped or name in known, name
    assert shipped["EDGE_PSLORA_ROOT"] == "/etc/edge-pslora/root.json"


def test_what_a_device_has_to_install():
    """Each package that edge-pslora needs is in the README's line, or the walk goes without it."""
    (line,) = re.findall(r"^ +pip install (?!--no-deps)(.+)$", README, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["signing"]]
    names = {re.split(r"[<>=;\[]", text)[0] for text in wanted}
    installed = {re.split(r"\[", word)[0] for word in shlex.split(line)}
    walk = ast.parse((UPDATERS / "walk.py").read_text(encoding="utf-8"))
    (absent,) = (
        ast.literal_eval(node.value)
        for node in walk.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ABSENT"
    )
    assert {"torch", "onnx"} < set(absent)
    assert names == installed | (names & set(absent))
    assert installed.isdisjoint(absent)
