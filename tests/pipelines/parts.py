"""Components that many pipelines are made of."""

from kfp import dsl

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def show(value: dict) -> str:
    """Give a value as JSON."""
    import json

    return json.dumps(value, sort_keys=True)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def say(text: str = "default") -> str:
    """Give the text back."""
    return text


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def double(number: int) -> int:
    """Give the number twice."""
    return 2 * number


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def total(numbers: list) -> int:
    """Give the sum."""
    return sum(numbers)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fail() -> str:
    """Fail."""
    raise SystemExit(1)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def write(number: int, data: dsl.Output[dsl.Dataset]):
    """Write the number into an artifact and its metadata."""
    data.metadata["number"] = number
    with open(data.path, "w") as file:
        file.write(str(number))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def read(data: dsl.Input[dsl.Dataset]) -> str:
    """Give what an artifact holds."""
    with open(data.path) as file:
        return file.read()


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def read_all(parts: dsl.Input[list[dsl.Dataset]]) -> str:
    """Give what the artifacts of a list hold."""
    return " ".join(open(part.path).read() for part in parts or [])
