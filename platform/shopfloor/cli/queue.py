"""How a queue is shown to a person: what a run asks of it, what its flavors have, why a run waits."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from shopfloor.cli import render

if TYPE_CHECKING:
    from shopfloor.engines.argo.waiting import Estimate, Holder
    from shopfloor.flows.queue import QueueForecast, RunQueue, StepForecast


def show_queue(queue: QueueForecast) -> None:
    """Print what a run will ask of its queue, and how that stands."""
    render.emit_table(
        ("step", "asks the queue for", "flavors", "ahead", "start", "an hour", "cost"),
        [_step(step, queue.currency) for step in queue.steps],
    )
    render.out.print()
    render.emit_table(
        ("flavor", "resource", "own", "most", "used", "borrowed"),
        [(one.flavor, one.resource, one.own, one.most or "?", one.used, one.borrowed) for one in queue.flavors],
    )
    render.out.print(f"{queue.pending} jobs wait in {queue.queue}.", markup=False)
    show_holders(queue.held_by)
    for step in queue.steps:
        if step.refusal:
            render.out.print(f"Never: {step.refusal}", markup=False, style="bold red")


def show_run_queue(queue: RunQueue) -> None:
    """Print why a run waits, and what holds the quota that it waits for."""
    for note in queue.notes:
        render.progress(note)
    if queue.waiting:
        render.out.print()
        rows = [
            (one.job, since(one.since), "" if one.ahead is None else one.ahead, f"{one.reason}: {one.why}")
            for one in queue.waiting
        ]
        render.emit_table(("waits", "since", "ahead", "why"), rows)
    show_holders(queue.held_by)
    for what, amount in queue.held_by_others.items():
        flavor, _, resource = what.partition(" ")
        render.out.print(f"Other teams hold {amount} {resource} of {flavor}.", markup=False)


def show_holders(holders: list[Holder]) -> None:
    """Print the team's runs that hold its quota."""
    if holders:
        render.out.print()
        rows = [(one.run, f"{one.since:%Y-%m-%d %H:%M} UTC", amounts(one.resources)) for one in holders]
        render.emit_table(("holds the team's quota", "since", "has"), rows)


def amounts(resources: dict[str, dict[str, float]]) -> str:
    """Return what is held of each flavor, as `gpu-spot 4 nvidia.com/gpu, 8 cpu`."""
    from shopfloor.engines.argo.asks import shown

    return "; ".join(
        f"{flavor} " + ", ".join(f"{shown(name, amount)} {name}" for name, amount in sorted(held.items()))
        for flavor, held in sorted(resources.items())
    )


def span(seconds: float) -> str:
    """Return a time as a person says it."""
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.3g} {unit}"
    return f"{seconds:.0f} s"


def since(time: dt.datetime) -> str:
    """Return a time, and how long ago it was."""
    return f"{time:%Y-%m-%d %H:%M} UTC ({span((dt.datetime.now(dt.UTC) - time).total_seconds())})"


def _step(step: StepForecast, currency: str) -> tuple[str, ...]:
    hourly = ", ".join(f"{flavor} {price:.4g}" for flavor, price in step.hourly.items())
    return (
        f"{step.step} ({step.kind}{', each' if step.repeated else ''})",
        step.asks + (f" (the run itself says how much {', '.join(step.unknown)})" if step.unknown else ""),
        "never" if step.refusal else ", ".join(step.flavors),
        "?" if step.ahead is None else str(step.ahead),
        "never" if step.refusal else _start(step),
        f"{hourly} {currency}" if hourly else "",
        _cost(step.cost, currency),
    )


def _start(step: StepForecast) -> str:
    history = (
        f"p50 {span(step.start.p50_s)}, p90 {span(step.start.p90_s)} (of {step.start.samples})"
        if step.start
        else "nothing like it was admitted yet"
    )
    return f"at once; {history}" if step.at_once else history


def _cost(cost: Estimate | None, currency: str) -> str:
    if cost is None:
        return "has not run yet"
    return f"p50 {cost.p50_s:.2f}, p90 {cost.p90_s:.2f} {currency} (of {cost.samples})"
