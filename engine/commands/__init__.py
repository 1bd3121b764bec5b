"""What the commands do once their arguments are read.

`python -m engine.X` reads them with modules that load at once, so that --help and a mistyped option take no time;
its `main` then imports `engine.commands.X`, which loads whatever it needs.
"""
