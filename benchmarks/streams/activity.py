"""Five activities from the motion sensors of a phone and a watch, person after person."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.places import data_path, unpack
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, Session, StreamScript, Test

TEST_TRIALS = 2  # of six to ten a person; a trial is one walk with both devices
# Both devices write about a hundred times a second, unevenly. Sitting down takes little more than a
# second: in windows of two seconds hardly anything but walking has one label.
READ = ("--label-column", "label", "--window", "1s", "--hop", "250ms", "--rate", "50")


def prepare(work: Path, cut: Cut) -> Plan:
    """Two folders of recordings a person: the last trials are the test.

    The cut counts trials here: how many windows a recording gives is the reader's affair.
    """
    root = unpack(data_path("har-phone-watch.tar.xz")) / "har"
    people = sorted(folder for folder in root.glob("s*") if folder.is_dir())[: cut.sessions]
    sessions: list[Session] = []
    tests: list[Test] = []
    for number, person in enumerate(people):
        trials = sorted({file.stem.rpartition("_")[0] for file in person.glob("*_s[pw].csv")})
        train, test = trials[:-TEST_TRIALS][: cut.train], trials[-TEST_TRIALS:][: cut.test]
        folder = work / person.name
        sessions.append(Session(person.name, _copy(person, train, folder / "train-recordings")))
        tests.append(Test(person.name, _copy(person, test, folder / "test-recordings"), number))
    return Plan(
        name="activity",
        title="human activity from phone and watch, person after person",
        setting="domain-incremental",
        model="auto",
        sessions=tuple(sessions),
        tests=tuple(tests),
        read=READ,
    )


def _copy(person: Path, trials: list[str], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for trial in trials:
        for file in sorted(person.glob(f"{trial}_s[pw].csv")):
            shutil.copyfile(file, folder / file.name)
    return folder


STREAM = StreamScript("activity", Cut(None, None), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
