"""`python -m server.cli`: the fluid command where nothing is installed; the supervisor starts its processes so."""

import sys

from server.cli.main import main

sys.exit(main())
