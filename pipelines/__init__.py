"""Beam pipelines: they move names, never pixels. Each transform is wiring around a sif_batch function."""

import logging

for logger in (None, "apache_beam"):  # the cause of a failure is ours to report, in one line
    logging.getLogger(logger).setLevel(logging.CRITICAL)
