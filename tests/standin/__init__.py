"""Training steps without a GPU, against a stand-in for CUDA: see README.md."""
