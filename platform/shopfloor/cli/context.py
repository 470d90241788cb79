"""What a command runs with: the settings, as the global options and the environment give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from shopfloor.settings import Settings


class State:
    """What the global options say."""

    def __init__(self, profile: str | None) -> None:
        """Remember the profile; nothing is read before a command needs it."""
        self.profile = profile

    def settings(self) -> Settings:
        """Return the settings of the profile, as they are at this moment; its secrets go to the components."""
        from shopfloor.settings import load_settings
        from shopfloor.stack.secrets import export

        settings = load_settings(self.profile)
        export(settings)
        return settings

    def settings_of_running_stack(self, *services: str) -> Settings:
        """Return the settings where the services are up, or are somebody else's to start; none named means all."""
        from shopfloor.settings import load_sourced_settings
        from shopfloor.stack.lifecycle import require_up
        from shopfloor.stack.secrets import export

        sourced = load_sourced_settings(self.profile)
        if sourced.sources["tracking_uri"] not in {"argument", "environment"}:
            require_up(sourced.settings, services)
        export(sourced.settings)
        return sourced.settings


def settings_from(context: typer.Context) -> Settings:
    """Return the settings that the command runs with."""
    state: State = context.obj
    return state.settings()


def settings_of_running_stack(context: typer.Context, *services: str) -> Settings:
    """Return the settings that the command runs with; it needs the services, all of them where none is named.

    Raises:
        ServiceError: One should run on this machine, and does not.
    """
    state: State = context.obj
    return state.settings_of_running_stack(*services)
