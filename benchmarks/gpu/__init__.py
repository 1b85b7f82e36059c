"""What `make gpu` runs on a machine with a GPU: see docs/gpu.md."""
