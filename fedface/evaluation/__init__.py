"""Metrics of face recognition: scores in, numbers with their uncertainty out."""
