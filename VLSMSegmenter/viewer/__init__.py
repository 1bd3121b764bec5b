"""The browser viewer: the Slicer module's work in a page, on Slicer's own rendering (trame-slicer).

Imports the module's parts that know no Qt, and the client's side of the engine. `engine.view` starts it; nothing
else imports it.

command.py    starts an engine for all, and the door
door.py       one address for everybody: starts sessions, and hands on what pages and sessions say
processes.py  a session as a process of its own, and the engine that they share
session.py    what runs in such a process: a scene, the logic, a page
scene.py      the scan and its segments in Slicer's views
actions.py    what can be done in the page
files.py      files from the page and to it
page.py       what the page shows
static/       its script and its looks
"""

from pathlib import Path

MODULE = Path(__file__).resolve().parent.parent  # with the module's library
