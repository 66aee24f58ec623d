"""SAM and GSAM with growing batches or a decaying learning rate: the experiment of Harada and Iiduka, 2024."""
