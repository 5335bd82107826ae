"""`python -m resd.cli`: the command line without the installed script."""

import sys

from resd.cli.main import main

sys.exit(main())
