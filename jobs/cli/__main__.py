"""python -m jobs.cli: the command line."""

from jobs.cli.main import main

main()
