"""What runs on the Ray workers: the method, the networks, the data and the training loop."""
