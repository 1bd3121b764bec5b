"""The version of the package, of the server's answers and of what is written into cards and reports."""

__version__ = "0.1.0"
