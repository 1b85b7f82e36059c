"""Headings of flags in ``lmcache bench --help``."""

MEASURED = "What is measured"
SWEPT = "Swept (lists with commas)"
CACHE = "The cache"
WORKLOAD = "The workload"
LOAD = "The load"
TRACE = "The trace (workload trace)"
REHEARSAL = "Made worse on purpose (to rehearse lmcache check)"
