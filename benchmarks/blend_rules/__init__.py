"""Rules of blend that benchmarks compare with the product's own, and the exact reference."""
