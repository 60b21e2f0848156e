"""sif-batch: images in, a published similarity index out.

The modules read as the data flows, and each imports only from those before it: config, buckets, objects, storage,
matching, columnar, lease, kernels, devices, memory, child, failures, formats, sources, erased, guards, profiles,
pixels, bands, images, encoders, shards, parts, catalog, known, embedding, watching, standing, gc, compaction, recall,
transform, rows, shapes, codebooks, sample, prospect, quantizer, codes, columns, metadata, assembly, drift, release,
rebuild, copies, history, filters, roster, segments, selection, feedback, question, query, duplicates, bulk, usage,
compare, pictures, rankings, judgements, relevance, evaluation, precision, truth, tuning, gate.
"""

__version__ = "0.1.0"
