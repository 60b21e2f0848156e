"""As clip-retrieval does it: batches through a DataLoader, float16 vectors of unit length, a flat index of faiss."""

import time

import faiss
import numpy as np
import torch
from common import Lite0, loader
from labelled import arguments, hand_over, median_ms

folder, paths, out = arguments()
network = Lite0().eval()
started = time.perf_counter()
with torch.inference_mode():
    batches = [network(batch).numpy() for batch in loader([str(path) for path in paths], 32)]
vectors = np.concatenate(batches)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
stored = vectors.astype(np.float16)
index = faiss.IndexFlatIP(stored.shape[1])
index.add(stored.astype(np.float32))
seconds = time.perf_counter() - started
query_ms = median_ms(lambda query: index.search(query[None].astype(np.float32), 10), stored)
hand_over(folder, paths, stored, out, seconds, stored[0].nbytes + 4 * stored.shape[1], query_ms)
