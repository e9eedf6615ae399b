"""Attacks on federated face recognition, to measure defences with."""
