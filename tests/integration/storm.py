"""Two deployers of one endpoint at a time, each with a state directory of its own, delayed, killed and paused anywhere.

Run as a program of its own, which imports once and forks: an interleaving then costs what its requests cost. Only the
wait for the endpoint is left out of the deployers' steps; the endpoint itself follows what they write. Prints one JSON
line an interleaving, with what each deployer was told.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from shopfloor.errors import ConflictError, ShopfloorError
from shopfloor.runs.mlflow import Mlflow
from shopfloor.serving import assignment as assignments
from shopfloor.serving.deploy import applications, champion, rollout
from shopfloor.serving.deploy.rollout import Traffic
from shopfloor.settings import load_settings

VERSIONS = ("1", "2")
LONGEST_DELAY_S = 0.03
"""Of a request to the registry, at most."""
PAUSE_S = (0.05, 0.4)
ask = Mlflow._ask


def main() -> None:
    """Run `argv[2]` interleavings on the use case `argv[1]`."""
    case, count, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    settings = load_settings()
    machines = [settings.model_copy(update={"state_dir": directory / name}) for name in ("one", "other")]
    rollout.hold = lambda *_, **__: None
    applications.build = lambda settings, case, entry: entry.application
    for number in range(count):
        dice = random.Random(number)
        entry = assignments.read(rollout.registry(settings), case)
        children = [begin(machine, case, entry, random.Random(f"{number} {machine.state_dir}")) for machine in machines]
        ends = {pid: disturb(pid, dice) for pid, _ in children}
        told = [json.loads(read(pipe) or '{"outcome": "killed"}') for _, pipe in children]
        for pid, _ in children:
            os.waitpid(pid, 0)
        # Whoever comes next, an `up` or another promotion, writes what shows the assignment elsewhere.
        newest = assignments.read(rollout.registry(settings), case)
        champion.project(rollout.registry(settings), case, newest)
        model = rollout.registry(settings).get("registered-models/get", "registered_model", name=case)
        aliases = {item["alias"]: str(item["version"]) for item in model.get("aliases", [])}
        line = {
            "told": told,
            "disturbed": list(ends.values()),
            "before": entry.assignment.revision,
            "after": newest.assignment.revision,
            "champion": newest.assignment.champion,
            "alias": aliases.get("champion"),
            "by": newest.assignment.reason,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def begin(settings, case, entry, dice):
    """Fork a deployer that changes who answers, as it read it; return its process and where it says what came of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.close(reading)
    name = settings.state_dir.name

    def delayed(self, *arguments, **named):
        time.sleep(dice.random() * LONGEST_DELAY_S)
        return ask(self, *arguments, **named)

    Mlflow._ask = delayed
    rollout.holds_already = lambda *_: dice.random() < 0.5
    try:
        act(settings, case, entry, dice, name)
        answer = {"outcome": "won"}
    except ConflictError as error:
        answer = {"outcome": "lost", "message": str(error)}
    except ShopfloorError as error:
        answer = {"outcome": "refused", "message": str(error)}
    except BaseException as error:
        answer = {"outcome": "bug", "message": repr(error)}
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)


def act(settings, case, entry, dice, name):
    """Promote, roll back, put on trial or end the trial."""
    now = entry.assignment
    what = dice.choice(("promote", "promote", "rollback", "trial", "end"))
    other = next(version for version in VERSIONS if version != now.champion)
    if what == "rollback" and now.before:
        champion.roll_back(settings, case, name, entry)
    elif what == "trial":
        share = Traffic(canary_percent=dice.choice((0, 50)))
        rollout.deploy(settings, case, challenger=other, traffic=share, reason=name, before=entry)
    elif what == "end":
        rollout.deploy(settings, case, challenger=None, action="end", reason=name, before=entry)
    else:
        champion.promote_version(settings, case, other, name, entry)


def disturb(pid, dice):
    """Kill a deployer somewhere on its way, or stop it and let it go on; or do neither."""
    what = dice.choice(("nothing", "nothing", "killed", "paused"))
    with contextlib.suppress(ProcessLookupError):
        if what != "nothing":
            time.sleep(dice.random() * 0.15)
        if what == "killed":
            os.kill(pid, signal.SIGKILL)
        elif what == "paused":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(dice.uniform(*PAUSE_S))
            os.kill(pid, signal.SIGCONT)
    return what


def read(pipe):
    """Return all that comes out of a pipe."""
    with os.fdopen(pipe) as file:
        return file.read()


if __name__ == "__main__":
    main()
