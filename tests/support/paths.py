"""Where the repository, its photos and the larger test data lie."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent  # what children import by name
PHOTOS = REPOSITORY / "examples" / "photos"
DATA = Path(os.environ.get("SIF_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
