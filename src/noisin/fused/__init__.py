"""The faster twins of ``noisin.reference``."""
