"""Federated face recognition in plain torch and numpy."""
