"""Read by every Python that a recorded test starts, see `raised`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
try:
    import raised

    raised.record()
except ImportError:  # an interpreter without the package
    pass
finally:
    sys.path.remove(str(Path(__file__).parents[1]))
