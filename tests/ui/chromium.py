"""Where the browser is that the tests of JupyterLab drive; run as a program it installs one where it can."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no Chromium found as $WM_CHROMIUM, {', '.join(NAMES)}; install Debian's package chromium, or Google Chrome"


def find() -> str | None:
    """Path of the browser, or None."""
    names = (os.environ.get("WM_CHROMIUM", ""), *NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def main() -> int:
    """Install Debian's package if there is no browser and we may; returns the exit code."""
    if find() is None and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
        for command in (("apt-get", "update"), ("apt-get", "install", "-y", "chromium")):
            print(*command, flush=True)
            subprocess.run(command, check=False, **quiet)
    if find() is None:
        print(MISSING, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
