"""AdaSAM's experiments: fine-tuning with SGD, SAM, AMSGrad and AdaSAM, with and without momentum."""
