"""What is written of the teams' files: it follows them, and what nobody needs any more goes."""

import shutil

import pytest
from shopfloor.errors import UsageError
from shopfloor.stack import secrets, team_manifests, teams

from tests.support.project import ROOT


def put(project, name, members):
    file = project / teams.FOLDER / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(f"{{name: {name}, members: {members}, quota: {{cpu: {{nominal: 8}}}}, budget: {{gpu_hours: 1}}}}")
    return file


def test_what_is_written_follows_the_files(tmp_path):
    project = tmp_path
    shutil.copytree(ROOT / teams.FLAVORS, project / teams.FLAVORS)
    (project / "platform/profiles").mkdir(parents=True)
    (project / "platform/compose").mkdir()
    for file in ("profiles/cluster.toml", "compose/s3-policy.json"):
        shutil.copy(ROOT / "platform" / file, project / "platform" / file)
    put(project, "a", "a")
    put(project, "b", "b")
    first = team_manifests.write(project, teams.load(project))

    assert team_manifests.write(project, teams.load(project)) == []
    assert teams.FOLDER / "a/a-namespace.yaml" in first

    file = put(project, "a", "others")
    assert set(team_manifests.stale(project, teams.load(project))) == {
        teams.FOLDER / "a/inside/member-rolebinding.yaml",
        teams.FOLDER / "a/shopfloor-a-queue-clusterrolebinding.yaml",
    }
    with pytest.raises(UsageError, match="shopfloor teams render"):
        team_manifests.require_fresh(project, teams.load(project))

    file.unlink()
    for place in ("b/left.yaml", "own/kustomization.yaml", "b/own.yaml"):
        (project / teams.FOLDER / place).parent.mkdir(exist_ok=True)
        (project / teams.FOLDER / place).write_text("resources: []\n" if "own" in place else team_manifests.NOTE)
    team_manifests.write(project, teams.load(project))
    assert not (project / teams.FOLDER / "a").exists()
    assert not (project / teams.FOLDER / "b/left.yaml").exists()
    assert (project / teams.FOLDER / "own/kustomization.yaml").exists(), "what somebody else put there"
    assert (project / teams.FOLDER / "b/own.yaml").exists(), "what somebody else put there"
    assert team_manifests.stale(project, teams.load(project)) == []


def test_a_team_gets_secrets_and_a_prefix_of_its_own(tmp_path):
    secrets.init(tmp_path, tmp_path / ".env", ["vision"])
    first = {name: (tmp_path / "teams/vision" / name).read_text() for name in secrets.TEAM_SECRETS}
    again = secrets.init(tmp_path, tmp_path / ".env", ["vision", "sight"])

    assert {name: (tmp_path / "teams/vision" / name).read_text() for name in secrets.TEAM_SECRETS} == first
    assert set(again.made) == {f"teams/sight/{name}" for name in secrets.TEAM_SECRETS}
    assert len(set(first.values())) == len(first)
    assert (tmp_path / "teams/vision/tokens/endpoints").exists()
