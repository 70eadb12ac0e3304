"""`python -m blockexpand`."""

from blockexpand.cli.main import main

main()
