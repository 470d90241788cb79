"""Let `python -m shopfloor` be the command."""

from shopfloor.cli.main import run

if __name__ == "__main__":
    run()
