"""One image at a time, as most tutorials do."""

import numpy as np
import torch
from common import FIRST, NETWORKS, arguments, load, report, write

paths, out, name = arguments()
network = NETWORKS[name]().eval()
vectors = []
with torch.inference_mode():
    for path in paths:
        vectors.append(network(load(path)[None])[0].numpy())
write(paths, np.stack(vectors), out)
report(len(paths), FIRST[0])
