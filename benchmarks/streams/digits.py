"""Spoken digits, speaker after speaker, with the built-in network for sound."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

from benchmarks.places import data_path
from benchmarks.streams.files import shuffled
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, StreamScript, paired
from edge_pslora.errors import DataError

_NAME = re.compile(r"recordings/(\d)_([a-z]+)_(\d+)\.wav")
TEST_NUMBERS = 5  # recordings 0 to 4 are the test part, as the data's authors have it


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a speaker: train/DIGIT/N.wav and test/DIGIT/N.wav."""
    path = data_path("fsdd.zip")
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if match := _NAME.fullmatch(name):
                    digit, speaker, number = match.groups()
                    part = "test" if int(number) < TEST_NUMBERS else "train"
                    parts = found.setdefault(speaker, {"train": [], "test": []})
                    parts[part].append((name, f"{part}/{digit}/{number}.wav"))
            speakers = sorted(found)[: cut.sessions]
            for speaker in speakers:
                for part, most in (("train", cut.train), ("test", cut.test)):
                    members = sorted(found[speaker][part])
                    for index in shuffled(len(members), cut)[:most]:
                        source, target = members[index]
                        file = work / speaker / target
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(archive.read(source))
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            str(path), expected="a zip archive", found=str(error), remedy="fetch it again"
        ) from error
    sessions, tests = paired(speakers, [work / speaker for speaker in speakers])
    return Plan(
        name="digits",
        title="spoken digits, speaker after speaker",
        setting="domain-incremental",
        model="auto",
        sessions=sessions,
        tests=tests,
        keep_testing=True,
    )


STREAM = StreamScript("digits", Cut(None, None), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
