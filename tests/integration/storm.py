"""Two deployers of one endpoint at a time, each with a state directory of its own, delayed, killed and paused anywhere.

Run as a program of its own, which imports once and forks: an interleaving then costs what its requests cost. Deployers
write to the registry alone, and the endpoint follows; with a second use case as the last argument they also declare the
endpoint to Serve and wait for it, are paused for longer than a lease holds, and the endpoint is asked each time, as is
that of the other use case. Prints one JSON line an interleaving, with what each deployer was told.
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
BEFORE_S, PAUSE_S = 0.15, (0.05, 0.4)
"""When a deployer is disturbed at the latest, and for how long it is paused."""
WHOLE_BEFORE_S, WHOLE_PAUSE_S, LEASE_S = 2.0, (0.05, 4.0), 2.0
"""The same where deployers wait for the endpoint, and how long a share is held that nobody judges."""
SETTLED_S = 60
ask = Mlflow._ask


def main() -> None:
    """Run `argv[2]` interleavings on the use case `argv[1]`, with state directories in `argv[3]`."""
    case, count, directory, *others = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:]
    settings = load_settings()
    machines = [settings.model_copy(update={"state_dir": directory / name}) for name in ("one", "other")]
    if not others:
        rollout.hold = lambda *_, **__: None
        applications.build = lambda settings, case, entry: entry.application
    for number in range(count):
        dice = random.Random(number)
        entry = assignments.read(rollout.registry(settings), case)
        dices = [random.Random(f"{number} {machine.state_dir.name}") for machine in machines]
        children = [begin(*each, case, entry, bool(others)) for each in zip(machines, dices, strict=True)]
        ends = {pid: disturb(pid, dice, bool(others)) for pid, _ in children}
        reports = [json.loads(read(pipe) or '{"outcome": "killed"}') for _, pipe in children]
        for pid, _ in children:
            os.waitpid(pid, 0)
        # Whoever comes next, an `up` or another promotion, writes what shows the assignment elsewhere.
        newest = assignments.read(rollout.registry(settings), case)
        champion.project(rollout.registry(settings), case, newest)
        model = rollout.registry(settings).get("registered-models/get", "registered_model", name=case)
        aliases = {item["alias"]: str(item["version"]) for item in model.get("aliases", [])}
        line = {
            "told": reports,
            "disturbed": list(ends.values()),
            "before": entry.assignment.revision,
            "after": newest.assignment.revision,
            "champion": newest.assignment.champion,
            "alias": aliases.get("champion"),
            "by": newest.assignment.reason,
        }
        if others:
            line |= {"endpoint": settled(settings, case, newest.assignment), "other": answers(settings, *others)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def settled(settings, case, decided):
    """Return the champion and the challenger as the endpoint has them, once they are those that were decided."""
    expected = {"champion": decided.champion, "challenger": decided.challenger}
    deadline = time.monotonic() + SETTLED_S
    while (live := rollout.live_versions(settings, case)) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return live


def answers(settings, case):
    """Tell whether an endpoint answers with its champion."""
    return bool(rollout.live_versions(settings, case).get("champion"))


def begin(settings, dice, case, entry, whole):
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
    if not whole:
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
        rollout.deploy(settings, case, challenger=other, traffic=share, reason=name, lease_s=LEASE_S, before=entry)
    elif what == "end":
        rollout.deploy(settings, case, challenger=None, action="end", reason=name, before=entry)
    else:
        champion.promote_version(settings, case, other, name, entry)


def disturb(pid, dice, whole):
    """Kill a deployer somewhere on its way, or stop it and let it go on; or do neither."""
    what = dice.choice(("nothing", "nothing", "killed", "paused"))
    with contextlib.suppress(ProcessLookupError):
        if what != "nothing":
            time.sleep(dice.random() * (WHOLE_BEFORE_S if whole else BEFORE_S))
        if what == "killed":
            os.kill(pid, signal.SIGKILL)
        elif what == "paused":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(dice.uniform(*(WHOLE_PAUSE_S if whole else PAUSE_S)))
            os.kill(pid, signal.SIGCONT)
    return what


def read(pipe):
    """Return all that comes out of a pipe."""
    with os.fdopen(pipe) as file:
        return file.read()


if __name__ == "__main__":
    main()
