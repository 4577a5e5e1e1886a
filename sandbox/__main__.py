"""The entry point of `python -m qwq_rl.sandbox`."""

import sys

from qwq_rl.sandbox.cli import main

sys.exit(main(sys.argv[1:]))
