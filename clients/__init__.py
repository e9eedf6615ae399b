"""Flower clients: thin site-side shells around fedface."""
