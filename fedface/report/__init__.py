"""Recorded results in; tables, reports, model cards and exported models out."""
