"""Engines and stores to test with: fetched once into one folder outside the repository, started and stopped here."""
