"""Reference arms of the studies, given to `train` and `compare` as objects: moe, parallel, upscaled."""
