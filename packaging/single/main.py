"""What the single file starts."""

from edgechat.cli.main import main

main()
