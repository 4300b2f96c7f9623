"""`python -m server.cli`: the command where no script is installed, as under torchrun."""

from server.cli.cli import main

main()
