"""imagededup's CNN. Its own network's weights are downloaded; where they cannot be had it takes EfficientNet-Lite0, as
its CustomModel, and says so."""

import sys
import time

import numpy as np
from common import TRANSFORM, Lite0
from imagededup.methods import CNN
from imagededup.utils import CustomModel
from labelled import arguments, hand_over, median_ms

folder, paths, out = arguments()
try:
    cnn = CNN(verbose=False)
except Exception as error:
    print(f"imagededup's own weights cannot be had here ({error}); EfficientNet-Lite0 instead", file=sys.stderr)
    cnn = CNN(verbose=False, model_config=CustomModel("lite0", Lite0().eval(), TRANSFORM))
started = time.perf_counter()
found = cnn.encode_images(image_dir=folder, recursive=True)
seconds = time.perf_counter() - started
vectors = np.stack([found[path.relative_to(folder).as_posix()] for path in paths])
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
query_ms = median_ms(lambda query: np.argsort(-(unit @ query))[:10], unit)
hand_over(folder, paths, vectors, out, seconds, vectors[0].nbytes, query_ms)
