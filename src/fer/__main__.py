"""python -m fer, as torchrun starts it."""

import sys

from fer.cli import main

sys.exit(main())
