"""Entry point of the single-file package."""

import os

from edgechat.cli.main import main

# PyInstaller sets LD_LIBRARY_PATH for this program. Restore it for child programs such as an editor.
original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
os.environ.pop("LD_LIBRARY_PATH", None)
if original is not None:
    os.environ["LD_LIBRARY_PATH"] = original

main()
