"""Beam's loggers, silenced: the cause of a failure is ours to report, in one line."""

import logging


def silence() -> None:
    """Nothing below CRITICAL is logged, by Beam or by whoever has no level of its own."""
    for logger in (None, "apache_beam"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
