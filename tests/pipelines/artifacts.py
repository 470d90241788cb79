"""Artifacts: from task to task, with their metadata, in lists, in loops, from outside."""

from kfp import dsl

from tests.pipelines.case import Case
from tests.pipelines.parts import read, read_all, write


@dsl.container_component
def describe(data: dsl.Input[dsl.Dataset], made: dsl.Output[dsl.Dataset], text: dsl.OutputPath(str)):
    """Write what is known of an artifact."""
    return dsl.ContainerSpec(
        image="busybox:1",
        command=["sh", "-ec", 'mkdir -p "$(dirname "$3")"; printf "%s %s %s" "$0" "$1" "$2" > "$3"; echo > "$4"'],
        args=[data.metadata, data.metadata["number"], made.metadata, text, made.path],
    )


@dsl.pipeline(name="metadata")
def metadata():
    describe(data=write(number=7).outputs["data"])


@dsl.pipeline(name="parts")
def parts() -> list[dsl.Dataset]:
    with dsl.ParallelFor([1, 2]) as item:
        part = write(number=item)
    return dsl.Collected(part.outputs["data"])


@dsl.pipeline(name="over-artifacts")
def over_artifacts():
    with dsl.ParallelFor(parts().output) as one:
        read(data=one)


@dsl.pipeline(name="collected-in-collected")
def collected_in_collected():
    with dsl.ParallelFor([1, 2]), dsl.ParallelFor([3, 4]) as inner:
        part = write(number=inner)
    read_all(parts=dsl.Collected(part.outputs["data"]))


@dsl.pipeline(name="imported")
def imported(uri: str = "s3://bucket/data"):
    read(data=dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset).output)


CASES = {
    "metadata": Case(metadata, {"describe.text": '{"number":7} 7 {}'}, on_local=False),
    "over_artifacts": Case(
        over_artifacts,
        {"for-loop-1-iteration-0/read.Output": "1", "for-loop-1-iteration-1/read.Output": "2"},
        on_local=False,
    ),
    "collected_in_collected": Case(collected_in_collected, {"read-all.Output": "3 4 3 4"}, on_local=False),
    "imported": Case(imported, runs=False),
}
