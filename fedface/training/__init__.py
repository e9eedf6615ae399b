"""Training at one site."""
