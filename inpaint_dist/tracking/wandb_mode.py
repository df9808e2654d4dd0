"""Whether wandb runs online, offline or not at all: decided before it is imported, so that it never has to ask."""

import configparser
import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "none"]

HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Where wandb's own server answers: netrc may name either."""

MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "none",
}
"""WANDB_MODE's values."""


def choose_mode(environ: Mapping[str, str], home: Path, here: Path) -> tuple[Mode, str]:
    """Decide from what the user has set up.

    WANDB_MODE decides; else the mode that `wandb offline` or `wandb online` saved; else a login (WANDB_API_KEY, an
    identity token, wandb's settings file, netrc) means online and none means offline.

    Args:
        environ: the environment.
        home: the user's home folder, where netrc and wandb's settings lie.
        here: the folder in which the run was started, where `wandb offline` leaves its settings.

    Returns:
        The mode, and why in a few words.
    """
    asked = environ.get("WANDB_MODE", "").strip().lower()
    if asked:
        mode = MODES.get(asked)
        return (mode, f"WANDB_MODE={asked}") if mode else ("offline", f"WANDB_MODE={asked} is not a known mode")
    settings = _settings(environ, home, here)
    if (saved := MODES.get(settings.get("mode", ""))) in ("offline", "none"):
        return saved, "wandb's settings file says so"
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if environ.get(name):
            return "online", f"{name} is set"
    if settings.get("api_key") or _in_netrc(environ, home, environ.get("WANDB_BASE_URL") or settings.get("base_url")):
        return "online", "logged in"
    return "offline", "not logged in"


def _settings(environ: Mapping[str, str], home: Path, here: Path) -> dict[str, str]:
    """What wandb's own commands saved; the folder's settings go before the user's."""
    folder = Path(environ.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([folder / "settings", here / "wandb" / "settings"])
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _in_netrc(environ: Mapping[str, str], home: Path, base_url: str | None) -> bool:
    hosts = (urlsplit(base_url).netloc,) if base_url else HOSTS
    named = environ.get("NETRC")
    candidates = [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]
    for path in candidates:
        try:
            entries = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if any(entries.authenticators(host) for host in hosts):
            return True
    return False
