"""Teams of a cluster: what a file may say, what is refused in one line."""

import shutil

import pytest
import yaml
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.stack import teams

from tests.support.project import ROOT

VISION = {
    "name": "vision",
    "members": "vision-engineers",
    "priority": "normal",
    "quota": {"cpu": {"nominal": 32, "borrowing": 32}, "gpu-spot": {"nominal": 4}},
    "budget": {"gpu_hours": 100},
}


@pytest.fixture
def project(tmp_path):
    """Give a project with the cluster's flavors and no teams."""
    shutil.copytree(ROOT / teams.FLAVORS, tmp_path / teams.FLAVORS)
    (tmp_path / "platform/profiles").mkdir(parents=True)
    shutil.copy(ROOT / "platform/profiles/cluster.toml", tmp_path / "platform/profiles")
    (tmp_path / teams.FOLDER).mkdir(parents=True)
    return tmp_path


def put(project, name="vision", **changes):
    file = project / teams.FOLDER / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**VISION, "name": name, **changes}))
    return file


def test_a_team_is_read_and_the_file_gives_all_that_is_said(project):
    put(project)

    (team,) = teams.load(project)

    assert team.model_dump(mode="json") == {
        **VISION,
        "quota": {"cpu": {"nominal": 32, "borrowing": 32}, "gpu-spot": {"nominal": 4, "borrowing": 0}},
        "limits": {},
        "host": None,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"priority": "urgent"}, "vision.yaml: priority: input should be 'background', 'normal' or 'production'"),
        ({"quotas": {}}, "vision.yaml: quotas: extra inputs are not permitted"),
        ({"quota": {}}, "vision.yaml: quota: dictionary should have at least 1 item"),
        (
            {"quota": {"gpu-spot": {"nominal": -1}}},
            "quota.gpu-spot.nominal: input should be greater than or equal to 0",
        ),
        ({"quota": {"h100": {"nominal": 1}}}, "there is no flavor 'h100'. Flavors: cpu, gpu-ondemand, gpu-spot"),
        ({"quota": {"gpu-spot": {"nominal": 99}}}, "gpu-spot: 99 is more than there is: 32"),
        ({"quota": {"gpu-spot": {"nominal": 8, "borrowing": 25}}}, "are more than there is: 32. Borrow 24 at most"),
        ({"members": ""}, "members: '' names no group"),
        ({"members": "two groups"}, "members: 'two groups' names no group"),
        ({"members": "system:authenticated"}, "is a group of Kubernetes' own"),
        ({"budget": {"gpu_hours": -5}}, "budget.gpu_hours: input should be greater than or equal to 0"),
        ({"budget": {}}, "budget.gpu_hours: field required"),
        ({"limits": {"runs": 0}}, "limits.runs: input should be greater than 0"),
        ({"limits": {"all runs": 3}}, "limits: value error, 'all runs' is no name of a pipeline, nor `runs`"),
        ({"host": "vision"}, "vision.yaml: host: 'vision' is no name of the DNS"),
        ({"host": "https://vision.example.org"}, "is no name of the DNS"),
        ({"host": "*.example.org"}, "is no name of the DNS"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(project, changes, message):
    put(project, **changes)

    with pytest.raises(UsageError) as refused:
        teams.load(project)

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["Vision", "vision_team", "1st", "-a", "a-", "a" * 41, "", "vision.team", "../x", "a\n"]
)
def test_a_name_that_is_no_dns_label_is_refused(name):
    with pytest.raises(UsageError, match="can be no team's name"):
        teams.require_name(name)


@pytest.mark.parametrize("name", ["argo", "kube-system", "shopfloor-system", "default", "secrets", "kueue-system"])
def test_a_name_that_is_somebody_elses_is_refused(name):
    with pytest.raises(UsageError, match="is taken"):
        teams.require_name(name)


def test_a_name_that_a_team_has_is_taken(project):
    before = put(project).read_text()

    with pytest.raises(UsageError, match="'vision' is taken"):
        teams.add(project, teams.validated({**VISION, "members": "others"}, "team"))

    assert (project / teams.FOLDER / "vision.yaml").read_text() == before


def test_a_file_of_another_name_is_refused(project):
    put(project).rename(project / teams.FOLDER / "sight.yaml")

    with pytest.raises(UsageError, match=r"the team's name is 'vision'. Call the file vision.yaml"):
        teams.load(project)


@pytest.mark.parametrize("text", ["name: [", "- a", "", "\x00"])
def test_a_file_that_is_no_yaml_of_keys_is_refused(project, text):
    (project / teams.FOLDER / "vision.yaml").write_text(text)

    with pytest.raises(UsageError, match="vision.yaml"):
        teams.load(project)


def test_a_group_is_that_of_one_team(project):
    put(project, "sight")
    put(project, "vision")

    with pytest.raises(UsageError, match="is that of team sight"):
        teams.load(project)


def test_a_host_is_that_of_one_team(project):
    put(project, "sight", members="sight-engineers", host="models.example.org")
    put(project, host="models.example.org")

    with pytest.raises(UsageError, match=r"host: 'models.example.org' is that of team sight"):
        teams.load(project)


def test_a_group_that_the_identity_provider_lacks_is_nobodys(project):
    put(project)

    assert len(teams.load(project, ["vision-engineers", "others"])) == 1
    with pytest.raises(UsageError, match="'vision-engineers' is nobody's"):
        teams.load(project, ["vision-engineer", "others"])


def test_what_teams_have_together_is_what_there_is_at_most(project):
    for name, own in (("a", 20), ("b", 12)):
        put(project, name, members=name, quota={"gpu-spot": {"nominal": own}})
    assert len(teams.load(project)) == 2

    more = teams.validated({**VISION, "name": "c", "members": "c", "quota": {"gpu-spot": {"nominal": 1}}}, "team")
    with pytest.raises(UsageError, match=r"of gpu-spot are 33 together, and there are 32: a 20, b 12, c 1"):
        teams.add(project, more)

    assert not (project / teams.FOLDER / "c.yaml").exists()


def test_a_flavor_that_does_not_say_how_much_there_is_of_it_is_refused(project):
    file = project / teams.FLAVORS / "cpu-resourceflavor.yaml"
    file.write_text(file.read_text().replace("1024Gi", "a lot"))

    with pytest.raises(UsageError, match=r"cpu-resourceflavor.yaml does not say how much"):
        teams.flavors(project)


def test_where_there_are_no_manifests_there_are_no_flavors(tmp_path):
    with pytest.raises(NotFoundError, match=r"no flavor in manifests/base/kueue"):
        teams.load(tmp_path)
