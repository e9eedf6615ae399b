"""Real sites: folders, certificates and Flower's own processes behind the ``fedface`` commands."""
