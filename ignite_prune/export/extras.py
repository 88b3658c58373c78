"""Optional packages, which are imported where they are used."""

from __future__ import annotations

from importlib.util import find_spec


def needed(package: str, extra: str) -> None:
    """Raise ImportError, with the command that installs it, if an optional package is missing.

    Args:
        package: the package's import name.
        extra: the extra of ignite_prune that installs it.
    """
    if find_spec(package) is None:
        raise ImportError(f"This needs {package}, which is not installed: pip install 'ignite-prune[{extra}]'")
