"""Sources: named places of images, listed into one table of entries."""

from sif_batch.sources.listing import LISTING_SCHEMA, Listing, list_sources, parse_sources

__all__ = ["LISTING_SCHEMA", "Listing", "list_sources", "parse_sources"]
