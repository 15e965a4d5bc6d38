"""How many devices a run does without."""

from __future__ import annotations

import pytest

from pipeline.devices import Devices


def failure(expected: int, started: int, set_aside: int) -> str | None:
    devices = Devices(expected)
    for number in range(started):
        devices.started(f"gpu {number}")
    for number in range(set_aside):
        devices.set_aside(f"gpu {number}", f"gpu {number} is broken")
    return devices.failure()


@pytest.mark.parametrize(
    ("devices", "most"), [(1, 0), (2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (11, 2), (12, 3)]
)
def test_a_run_does_without_a_quarter_of_its_devices_and_without_one_if_another_works(
    devices: int, most: int
) -> None:
    assert failure(devices, devices, most) is None
    assert failure(devices, devices, most + 1) is not None


def test_devices_that_have_not_started_yet_count() -> None:
    assert failure(8, 2, 2) is None
    assert failure(8, 3, 3) == "gpu 2 is broken (3 of 8 devices are set aside)"


def test_more_devices_than_expected_count() -> None:
    assert failure(1, 8, 2) is None


def test_the_only_device_needs_no_number() -> None:
    assert failure(1, 1, 1) == "gpu 0 is broken"


def test_the_first_reason_of_a_device_stays() -> None:
    devices = Devices()
    devices.started("gpu 0")
    devices.set_aside("gpu 0", "it is off; shards stay open, run the same command again")
    devices.set_aside("gpu 0", "it crashed")
    assert devices.lines() == ["gpu 0 is set aside: it is off"]
    devices.embedded("gpu 0")  # By an encoder that shares it, and had begun before.
    assert devices.is_set_aside("gpu 0")
