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


@component
def on_ray(program: str) -> str:
    """Run a program on a Ray cluster of the step's own, as small as it can be, and give the name of its job."""
    import shlex
    from functools import partial

    from shopfloor.settings import load_settings
    from shopfloor.training import rayjob, rayjob_run

    class Small(rayjob.Workers):
        def pods(self):
            return 1, "100m", 0

    rayjob.HEAD = {"cpu": "100m", "memory": "1Gi"}
    settings = load_settings()
    names = partial(rayjob.job_name, "toy", {"run": settings.run_id})
    rayjob_run.run(settings, names, f"python -c {shlex.quote(program)}", Small(1, 1, 0))
    return names(rayjob.attempt_number(settings))


SAID_BY_A_WORKER = """
import ray
ray.init()
@ray.remote
def say():
    print("said by a worker", flush=True)
    return "heard by the driver"
print(ray.get(say.remote()), flush=True)
"""


@dsl.pipeline(name="ray-job")
def ray_job():
    on_ray(program=SAID_BY_A_WORKER)


@dsl.pipeline(name="ray-job-fails")
def ray_job_fails():
    on_ray(program=SAID_BY_A_WORKER + "raise SystemExit('the driver has failed')")


LONG_AT_FIRST = """
import os, time
print("attempt", os.environ["SHOPFLOOR_ATTEMPT"].split("#")[1], flush=True)
while "#1#" in os.environ["SHOPFLOOR_ATTEMPT"]:
    time.sleep(1)
"""


@dsl.pipeline(name="ray-job-tried-again")
def ray_job_tried_again():
    on_ray(program=LONG_AT_FIRST + SAID_BY_A_WORKER).set_retry(2)


@dsl.pipeline(name="ray-job-without-end")
def ray_job_without_end():
    on_ray(program="import time\nprint('on', flush=True)\nwhile True:\n    time.sleep(1)\n")
