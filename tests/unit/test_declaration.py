"""What Ray Serve is asked to run."""

from pathlib import Path

from shopfloor.serving.deploy import applications
from shopfloor.settings import Settings
from shopfloor.use_case import load_use_case

PROJECT = Path(__file__).resolve().parents[2]


def test_new_replicas_come_with_new_code_of_all_that_they_run_and_of_nothing_else():
    settings = Settings(project_root=PROJECT)
    code = applications.replica_code(settings, load_use_case(settings, "flight_delays"))
    assert {
        "shopfloor.serving.replica.app",
        "shopfloor.judging.golden",
        "shopfloor.serving.beside.rehearsal",
        "shopfloor.serving.beside.shadow_process",
        "shopfloor.runs.mlflow",
        "pipelines.flight_delays.features",
    } <= set(code)
    rooms = {name.split(".")[1] for name in code if name.startswith("shopfloor.")}
    assert not rooms & {"cli", "flows", "engines", "stack", "training", "report"}


def test_code_of_its_own_that_a_model_holds_is_code_of_its_replicas():
    settings = Settings(project_root=PROJECT)
    code = applications.replica_code(settings, load_use_case(settings, "digits"))
    assert {name for name in code if name.startswith("pipelines.")} == {"pipelines.digits.pixels"}


def test_a_cluster_on_this_machine_is_the_same_one_whatever_its_port():
    here = [Settings(project_root=PROJECT, ray_dashboard_url=f"http://127.0.0.1:{port}") for port in (8265, 9999)]
    there = Settings(project_root=PROJECT, ray_dashboard_url="https://ray.example.org")
    assert applications.place(here[0]) == applications.place(here[1]) != applications.place(there)


def application(cpus, message, *replicas):
    deployment = {"message": message, "required_resources": {"CPU": cpus}, "replicas": list(replicas)}
    return {"deployments": {"predictor": deployment}}


def test_a_replica_without_a_place_is_told_with_who_has_the_cpus():
    message = (
        "Deployment 'predictor' in application 'a' has 1 replicas that have taken more than 30s to be scheduled. This "
        "may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. Resources "
        'required for each replica: {"CPU": 1.5}, total resources available: {"CPU": %s}. Use `ray status` for more.'
    )
    others = {"b": application(0.5, "", {"pid": 7}, {"pid": 8}), "c": {"deployments": {}}, "d": application(9, "", {})}
    waits = applications.lacks_room({"a": application(1.5, message % "0.25", {})} | others, "a")
    assert waits.startswith("waiting for 1.5 CPU (0.25 free) for a replica of a; CPUs of other endpoints: b 1. ")
    assert applications.lacks_room({"a": application(1.5, message % "2.0", {})} | others, "a") == ""
    assert applications.lacks_room({"a": application(1.5, "", {})} | others, "a") == ""
