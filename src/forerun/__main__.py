"""`python -m forerun`: the command line."""

from forerun.cli import app

app(prog_name="forerun")
