"""python -m sif_batch.jobs.cli: the command line."""

from sif_batch.jobs.cli.main import main

main()
