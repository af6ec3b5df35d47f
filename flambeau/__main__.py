"""`python -m flambeau`: the command line from a checkout, with nothing installed but the dependencies."""

import sys

from flambeau.cli import main

sys.exit(main())
