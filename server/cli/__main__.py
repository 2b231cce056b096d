"""`python -m server.cli`: the `fluid` command where no script is installed; the supervisor uses it too."""

from server.cli.main import run_and_exit

run_and_exit()
