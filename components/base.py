"""The one place that says how a step is packed: the platform image, without an installation of KFP at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfp import dsl

PLATFORM_IMAGE = "shopfloor/platform:0.1.0"


def component(function: Callable[..., Any]) -> Any:
    """Make a KFP lightweight component of `function`; it runs in the platform image, which holds this repository.

    Args:
        function: Self-contained (it imports inside its body), with typed parameters and artifacts.

    Returns:
        A KFP component, as `dsl.component` makes it.
    """
    return dsl.component(base_image=PLATFORM_IMAGE, install_kfp_package=False)(function)
