"""DataLoader workers and eager torch in batches, as clip-retrieval does."""

import time

import torch
from common import NETWORKS, arguments, loader, report, write

paths, out, name = arguments()
network = NETWORKS[name]().eval()
first = time.time()
with torch.inference_mode():
    vectors = torch.cat([network(batch) for batch in loader(paths, 32)])
write(paths, vectors.numpy(), out)
report(len(paths), first)
