"""How the driver tells what a stage raised in some actor."""

import pytest
import ray

from pipeline.drive import _told_in_a_line
from pipeline.errors import DeviceError, InternalError, PatchflowError

ADVICE = "Failed to apply UDF transform after 1/1 attempts.\nTo change retry attempts, configure."


def raised_by_a_task(kind: type[Exception], line: str) -> Exception:
    """What Ray and Ray Data make of an error, as the driver meets it."""
    error = kind(f"{line}\n{ADVICE}")
    trace = f"Traceback (most recent call last):\n  somewhere\n{type(error).__name__}: {error}"
    found: Exception = ray.exceptions.RayTaskError("task", trace, error).as_instanceof_cause()
    return found


def test_a_stages_own_error_is_told_without_the_engines_traceback() -> None:
    with pytest.raises(PatchflowError) as told, _told_in_a_line():
        raise raised_by_a_task(DeviceError, "the device is broken")
    assert (type(told.value), str(told.value)) == (DeviceError, "the device is broken")


def test_any_other_error_is_told_by_its_first_line() -> None:
    with pytest.raises(InternalError) as told, _told_in_a_line():
        raise raised_by_a_task(RuntimeError, "a bug")
    assert str(told.value) == "the run failed: RuntimeError: a bug; --verbose tells more"


def test_what_the_driver_itself_raises_passes() -> None:
    error = DeviceError("the device is broken")
    with pytest.raises(DeviceError) as told, _told_in_a_line():
        raise error
    assert told.value is error


def test_an_error_of_ray_itself_is_told_by_its_last_line() -> None:
    with pytest.raises(InternalError) as told, _told_in_a_line():
        raise ray.exceptions.RayError("something long\n\nthe disk is full\n")
    assert str(told.value) == "the run failed: the disk is full; --verbose tells more"
