"""What the single file starts."""

import os

from edgechat.cli.main import main

# What PyInstaller sets for this program is not meant for an editor or another one that is started from it.
before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
os.environ.pop("LD_LIBRARY_PATH", None)
if before is not None:
    os.environ["LD_LIBRARY_PATH"] = before

main()
