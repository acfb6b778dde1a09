"""Evaluation, benchmarks and studies; nothing in the library imports from here."""
