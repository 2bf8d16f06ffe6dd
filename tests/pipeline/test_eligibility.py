"""When the device may learn, from a made-up /sys."""

from __future__ import annotations

import pytest

from edge_pslora.config import EligibilityConfig
from edge_pslora.errors import NotEligibleError
from edge_pslora.pipeline.eligibility import INTERVAL, Watch
from edge_pslora.pipeline.system import read_state


@pytest.fixture
def sysfs(tmp_path):
    def write(charge: int, online: int, millidegrees: int):
        for name, content in (
            ("power_supply/AC/type", "Mains"),
            ("power_supply/AC/online", online),
            ("power_supply/BAT0/type", "Battery"),
            ("power_supply/BAT0/capacity", charge),
            ("power_supply/mouse/type", "Battery"),
            ("power_supply/mouse/scope", "Device"),
            ("power_supply/mouse/capacity", 1),
            ("thermal/thermal_zone0/temp", millidegrees),
        ):
            path = tmp_path / "class" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return write


def test_what_sysfs_says(sysfs, tmp_path):
    state = read_state(tmp_path / "not" / "there", sysfs(64, 1, 45_500))
    assert (state.on_power, state.battery, state.temperature) == (True, 64, 45.5)
    assert state.free > 0


@pytest.mark.parametrize(
    ("rules", "option"),
    [
        (EligibilityConfig(only_on_power=True), "--only-on-power"),
        (EligibilityConfig(min_battery=30), "--min-battery"),
        (EligibilityConfig(max_temperature=80), "--max-temperature"),
        (EligibilityConfig(min_free=1 << 62), "--min-free"),
    ],
)
def test_a_rule_that_does_not_hold(sysfs, tmp_path, rules, option):
    with pytest.raises(NotEligibleError) as caught:
        Watch(rules, tmp_path, sysfs(29, 0, 81_000)).check()
    assert (caught.value.where, caught.value.exit_code) == (option, 1)


def test_it_looks_again_after_a_second(sysfs, tmp_path):
    now = [0.0]
    rules = EligibilityConfig(min_battery=30, only_on_power=True, max_temperature=80)
    watch = Watch(rules, tmp_path, sysfs(30, 1, 80_000), lambda: now[0])
    watch.check()
    sysfs(29, 1, 80_000)
    watch.check()  # too soon to look
    now[0] += INTERVAL
    with pytest.raises(NotEligibleError, match="--min-battery"):
        watch.check()
