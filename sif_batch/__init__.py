"""sif-batch: images in, a published similarity index out.

