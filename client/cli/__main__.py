"""`python -m client.cli`: the command where no script is installed, as under torchrun."""

from client.cli.cli import main

main()
