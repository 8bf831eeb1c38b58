"""The command as `python -m cluster.cli`, for environments whose console scripts are not on the path."""

import sys

from cluster.cli.main import main

sys.exit(main())
