"""The command line over the cache, the workloads and the reports."""
