"""Says who it runs as, when Easter is, and its arguments."""

import os
import sys

from dateutil.easter import easter

print(os.getuid(), easter(2024), *sys.argv[1:])
