"""Runs Terraform on a copy of terraform/, with an AWS provider that lies on this machine where one does.

`TERRAFORM_PLUGINS` names a folder with `registry.terraform.io/hashicorp/aws` in it; otherwise the usual places are
looked at.
"""

import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "terraform"
PLACES = (
    "~/.terraform.d/plugins",
    "~/.local/share/terraform/plugins",
    "/usr/local/share/terraform/plugins",
    "/usr/share/terraform/plugins",
)
PROVIDER = "registry.terraform.io/hashicorp/aws"


def plugins() -> Path | None:
    """Return the folder that the AWS provider lies in, if there is one."""
    chosen = os.environ.get("TERRAFORM_PLUGINS")
    places = [Path(chosen)] if chosen else [*(Path(place).expanduser() for place in PLACES), *Path("/opt").glob("*")]
    return next((place for place in places if (place / PROVIDER).is_dir()), None)


def absence(*, provider: bool = True) -> str:
    """Return why Terraform cannot be run here, or nothing."""
    if not shutil.which("terraform"):
        return "There is no terraform on the PATH."
    if provider and plugins() is None:
        return "No AWS provider lies here: TERRAFORM_PLUGINS names a folder with one."
    return ""


def copy(folder: Path) -> Path:
    """Return a copy of terraform/ below `folder`, without what somebody's own runs left in it; beside it, the teams."""
    leftovers = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars")
    shutil.copytree(SOURCES, folder / "terraform", ignore=leftovers)
    teams = folder / "manifests" / "teams"
    teams.mkdir(parents=True)
    for file in (SOURCES.parent / "manifests" / "teams").glob("*.yaml"):
        shutil.copy(file, teams)
    return folder / "terraform"


def terraform(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one command of Terraform in `root`; it asks nobody about newer versions, and knows no account."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "AWS_"))}
    environment |= {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_CLI_CONFIG_FILE": os.devnull}
    return subprocess.run(
        ["terraform", f"-chdir={root}", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def initialize(root: Path) -> None:
    """Install modules and the provider into `root`; from the registry where none lies here."""
    place = plugins()
    result = terraform(
        root, "init", "-backend=false", "-input=false", "-no-color", *([f"-plugin-dir={place}"] if place else [])
    )
    assert result.returncode == 0, result.stdout + result.stderr
