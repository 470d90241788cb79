"""A day of three teams: their files, and a trace of RayJobs from a seed."""

import random

import yaml
from shopfloor.stack import team_manifests, teams

from tests.simulation.kueue import Job, thousandths
from tests.support.project import ROOT

HOUR = 3600.0
END = 24 * HOUR
JOBS = 60
"""Jobs of each team."""
TEAMS = {
    "flights": {"cpu": (96, 160), "gpu-ondemand": (4, 12), "gpu-spot": (12, 20)},
    "vision": {"cpu": (96, 160), "gpu-spot": (16, 16), "gpu-ondemand": (4, 12)},
    "speech": {"cpu": (64, 192), "gpu-ondemand": (8, 8), "gpu-spot": (4, 28)},
}
"""Own and borrowed share by flavor: together all that the cluster has."""
BUSY = {"flights": (0, 9), "vision": (7, 16), "speech": (14, 23)}
"""Hours in which a team submits most; between two of them, two teams want more than there is."""


def queues() -> list[dict]:
    """Return the ClusterQueues of the three teams, which have together all that the cluster has."""
    for name, flavor in teams.flavors(ROOT).items():
        assert sum(quota[name][0] for quota in TEAMS.values()) == flavor.units, name
    return rendered(TEAMS)


def rendered(shares: dict[str, dict[str, tuple[int, int]]]) -> list[dict]:
    """Return the ClusterQueues that `shopfloor teams render` makes of teams with these own and borrowed shares."""
    listed = [
        teams.validated(
            {
                "name": name,
                "members": f"{name}-engineers",
                "quota": {flavor: {"nominal": own, "borrowing": more} for flavor, (own, more) in quota.items()},
                "budget": {"gpu_hours": 1000},
            },
            name,
        )
        for name, quota in shares.items()
    ]
    texts = team_manifests.rendered(ROOT, listed)
    return [yaml.safe_load(text) for path, text in texts.items() if path.name.endswith("-clusterqueue.yaml")]


def trace(seed: int) -> list[Job]:
    """Return the jobs of a day in the order in which they are submitted."""
    dice = random.Random(seed)
    jobs = []
    for team, (start, end) in BUSY.items():
        for number in range(JOBS):
            hour = dice.uniform(start, end) if dice.random() < 0.8 else dice.uniform(0, 24)
            workers = dice.choice((1, 1, 2, 2, 4, 4, 8, 16))
            gpus = {"nvidia.com/gpu": "1"} if dice.random() < 0.85 else {}
            head = (1, _requests(cpu="1", memory="4Gi"))
            submitter = (1, _requests(cpu="200m", memory="512Mi"))
            worker = (workers, _requests(cpu=dice.choice(("2", "4", "8")), memory="8Gi", **gpus))
            jobs.append(
                Job(
                    name=f"{team}-{number:03}",
                    team=team,
                    pod_sets=[head, worker, submitter],
                    created=hour * HOUR,
                    priority=dice.choice((100, 1000, 1000, 1000, 10000)),
                    seconds=min(8 * HOUR, dice.lognormvariate(8.9, 0.8)),
                )
            )
    return sorted(jobs, key=lambda job: (job.created, job.name))


def _requests(**amounts: str) -> dict[str, int]:
    return {name: thousandths(amount) for name, amount in amounts.items()}
