"""`python -m server.cli`: the `fluid` command where no script is installed; the supervisor uses it too."""

import sys

from server.cli.main import main

sys.exit(main())
