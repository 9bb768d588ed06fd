"""`python -m anybatch`: the command line."""

import sys

from anybatch.cli import main

sys.exit(main())
