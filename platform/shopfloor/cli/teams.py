"""Commands for the teams of a shared cluster: list, check, add, render."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shopfloor.cli import render
from shopfloor.cli.options import JsonOption

if TYPE_CHECKING:
    from shopfloor.stack.teams import Quota

GroupsOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="File with the identity provider's groups, one a line: who is in none is refused.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    teams = typer.Typer(help="Say which teams share the cluster, and how much of it each has.", no_args_is_help=True)
    teams.command("list")(list_)
    teams.command("check")(check)
    teams.command("add")(add)
    teams.command("render")(render_)
    app.add_typer(teams, name="teams")


def list_(as_json: JsonOption = False) -> None:
    """List the teams with their shares, own and borrowed."""
    from shopfloor.settings import find_project_root
    from shopfloor.stack import teams

    listed = teams.load(find_project_root())
    if as_json:
        render.emit_json_list(teams.Team, listed)
        return
    rows = [
        (team.name, team.members, team.priority, f"{team.budget.gpu_hours:g}", _shares(team.quota)) for team in listed
    ]
    render.emit_table(("team", "members", "priority", "GPU-hours a month", "own + borrowed"), rows)


def check(groups: GroupsOption = None) -> None:
    """Hold the teams' files against the cluster and one another, and what was rendered against the files."""
    from shopfloor.settings import find_project_root
    from shopfloor.stack import team_manifests, teams

    root = find_project_root()
    names = groups.read_text(encoding="utf-8").split("\n") if groups else None
    listed = teams.load(root, [name.strip() for name in names] if names else None)
    team_manifests.require_fresh(root, listed)
    render.progress(f"{len(listed)} teams are as they should be.")


def add(
    name: Annotated[str, typer.Argument(help="Of the team: a DNS label.")],
    members: Annotated[str, typer.Option(help="Group of its members, as the identity provider names it.")],
    quota: Annotated[
        list[str], typer.Option(help="FLAVOR=OWN or FLAVOR=OWN+BORROWED, in GPUs or, without GPUs, CPUs; repeatable.")
    ],
    priority: Annotated[str, typer.Option(help="background, normal or production.")] = "normal",
    gpu_hours: Annotated[float, typer.Option(min=0, help="Budget of a calendar month.")] = 0,
    host: Annotated[
        str | None, typer.Option(help="Name by which its endpoints are asked from outside of the cluster.")
    ] = None,
) -> None:
    """Write the file of a new team and render it; nothing is written where the cluster has no room for it."""
    from shopfloor.settings import find_project_root
    from shopfloor.stack import team_manifests, teams

    root = find_project_root()
    content = {
        "name": name,
        "members": members,
        "priority": priority,
        "quota": dict(_share(text) for text in quota),
        "budget": {"gpu_hours": gpu_hours},
        "host": host,
    }
    teams.require_name(name)
    file = teams.add(root, teams.validated(content, f"team {name}"))
    render.progress(f"Wrote {file.relative_to(root)}.")
    _tell(team_manifests.write(root, teams.load(root)))


def render_() -> None:
    """Write what the teams' files mean: namespaces, quotas, queues, rights, policies, profiles."""
    from shopfloor.settings import find_project_root
    from shopfloor.stack import team_manifests, teams

    root = find_project_root()
    _tell(team_manifests.write(root, teams.load(root)))


def _tell(changed: list[Path]) -> None:
    for path in changed:
        render.progress(f"changed {path}")
    if not changed:
        render.progress("Nothing changed.")


def _shares(quota: dict[str, Quota]) -> str:
    return ", ".join(f"{name} {share.nominal}+{share.borrowing}" for name, share in quota.items())


def _share(text: str) -> tuple[str, dict[str, int]]:
    """Return a flavor and its share of a text such as `gpu-spot=4+8`.

    Raises:
        typer.BadParameter: It names none.
    """
    match = re.fullmatch(r"([^=]+)=(\d{1,6})(?:\+(\d{1,6}))?", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no share: write gpu-spot=4 or gpu-spot=4+8")
    return match[1], {"nominal": int(match[2]), "borrowing": int(match[3] or 0)}
