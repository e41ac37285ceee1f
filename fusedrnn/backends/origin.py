"""Where this installation came from, and so the command that builds its kernels."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import shlex
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {  # isolation, as uv does it, hides the torch to compile against
    "pip": "pip install --no-cache-dir --force-reinstall --no-deps",
    "uv": "uv pip install --no-build-isolation --no-cache --reinstall --no-deps",
}


@functools.cache
def _distribution() -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution("fusedrnn")
    except importlib.metadata.PackageNotFoundError:
        return None


def version() -> str | None:
    found = _distribution()
    return found and found.version


def torch_required() -> str | None:
    """The release of torch that the kernels were compiled for, where the metadata name one."""
    requires = (_distribution() and _distribution().requires) or ()
    return next((found[1] for r in requires if (found := re.match(r"torch==([\w.]+)", r))), None)


def remedy() -> str:
    """What to type to have kernels for the torch that is installed."""
    found = _distribution()
    command = COMMANDS["uv" if found and (found.read_text("INSTALLER") or "").strip() == "uv" else "pip"]
    if (ROOT / "setup.py").exists():
        return f"To build them: {command} -e {shlex.quote(str(ROOT))}"
    origin = json.loads((found and found.read_text("direct_url.json")) or "{}")
    url, vcs = origin.get("url", ""), origin.get("vcs_info")
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    elif url.startswith("file:"):
        url = urllib.request.url2pathname(urllib.parse.urlparse(url).path)
    if url.endswith(".whl") or not url:
        release = torch_required()
        fitting = f"pip install torch=={release}, or install" if release else "Install"
        return f"{fitting} a wheel made for this torch, or in the folder of the sources: {command} ."
    return f"To build them: {command} {shlex.quote(url)}"
