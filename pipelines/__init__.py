"""Beam pipelines: they move names, never pixels. Each transform is wiring around a sif_batch function."""
