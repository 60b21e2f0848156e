"""The script that most people begin with: one image at a time, all that the network says, exact cosine in numpy."""

import time

import numpy as np
import torch
from common import Lite0, load
from labelled import arguments, hand_over, median_ms

folder, paths, out = arguments()
network = Lite0().network.eval()
started = time.perf_counter()
with torch.inference_mode():
    vectors = np.stack([network(load(path)[None])[0].numpy() for path in paths])
seconds = time.perf_counter() - started
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
query_ms = median_ms(lambda query: np.argsort(-(unit @ query))[:10], unit)
hand_over(folder, paths, vectors, out, seconds, vectors[0].nbytes, query_ms)
