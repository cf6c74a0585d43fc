"""``python -m pyrnn`` is the command ``pyrnn``."""

import sys

from .cli import main

sys.exit(main())
