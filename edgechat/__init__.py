"""A terminal chat that runs open-weight models on your own machine."""

__version__ = "0.1.0"
