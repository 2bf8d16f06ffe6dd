"""See benchmarks.suite.main."""

import sys

from benchmarks.suite.main import main

if __name__ == "__main__":
    sys.exit(main())
