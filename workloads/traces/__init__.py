"""Traces of real requests: readers, arrays, summaries, and what is made from them."""

from workloads.traces.arrays import TraceArrays, load_arrays
from workloads.traces.lines import FEW_MALFORMED, Malformed, TraceError
from workloads.traces.reader import ReadOptions, Tokenize, TraceRequest, TraceSegment
from workloads.traces.trace import FORMATS, Trace, open_trace

__all__ = [
    "FEW_MALFORMED",
    "FORMATS",
    "Malformed",
    "ReadOptions",
    "Tokenize",
    "Trace",
    "TraceArrays",
    "TraceError",
    "TraceRequest",
    "TraceSegment",
    "load_arrays",
    "open_trace",
]
