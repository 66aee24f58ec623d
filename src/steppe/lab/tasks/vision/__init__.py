"""CIFAR-10 and CIFAR-100 with the convolutional networks on which sharpness-aware methods were published."""
