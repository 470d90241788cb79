"""Pipelines for a real cluster, each to see one thing that happens to runs there. `--function` names one."""

from kfp import dsl

from components.base import PLATFORM_IMAGE, component


@component
def double(number: int) -> int:
    """Give the number twice."""
    print(f"twice {number}")
    return 2 * number


@dsl.component(base_image=f"docker.io/{PLATFORM_IMAGE}", install_kfp_package=False)
def elsewhere(number: int) -> int:
    """Give the number back, in an image that is not the platform's."""
    print(f"elsewhere {number}")
    return number


@dsl.pipeline(name="two-images")
def two_images(number: int = 3):
    elsewhere(number=double(number=number).output)


@component
def wait_for_ever():
    """Print, and never end."""
    import time

    print("waiting", flush=True)
    while True:
        time.sleep(1)


@component
def farewell(status: dsl.PipelineTaskFinalStatus) -> str:
    """Print how the tasks before ended."""
    print(f"farewell {status.state}")
    return status.state


@dsl.pipeline(name="lasting")
def lasting():
    with dsl.ExitHandler(farewell()):
        wait_for_ever()


@component
def fill_memory():
    """Take memory until there is none."""
    held = []
    while True:
        held.append(bytearray(16_000_000))


@dsl.pipeline(name="greedy")
def greedy():
    fill_memory().set_memory_limit("128Mi")


@dsl.pipeline(name="tried-again")
def tried_again():
    wait_for_ever().set_retry(2)


@component
def open_door(number: int) -> int:
    """Fail."""
    raise SystemExit("The door is closed.")
    return number


@dsl.pipeline(name="closed")
def closed():
    open_door(number=double(number=4).output)


@dsl.component(base_image="localhost/nowhere:1", install_kfp_package=False)
def nothing():
    """Do nothing."""


@dsl.pipeline(name="from-nowhere")
def from_nowhere():
    nothing()


@component
def say(text: str) -> str:
    """Print the text."""
    print(text)
    return text


@dsl.pipeline(name="scheduled")
def scheduled():
    say(text=f"made for {dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER}")
