"""The server's other end: ask one that runs, or start one as a process of this machine. Needs numpy, no torch."""

from engine.client.client import Client, RemoteVolume, Result

__all__ = ["Client", "RemoteVolume", "Result"]
