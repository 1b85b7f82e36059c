"""Requests to measure with: generators that are pure functions of their settings and a corpus."""

from workloads.answering import Cut, Example, answering
from workloads.generated import GeneratedCorpus
from workloads.replay import Replay, replay
from workloads.request import Request, Segment
from workloads.settings import Settings
from workloads.text import Corpus, CorpusError, FolderCorpus
from workloads.workload import WORKLOAD_USES, WORKLOADS, generate, seen_before, warming

__all__ = [
    "WORKLOADS",
    "WORKLOAD_USES",
    "Corpus",
    "CorpusError",
    "Cut",
    "Example",
    "FolderCorpus",
    "GeneratedCorpus",
    "Replay",
    "Request",
    "Segment",
    "Settings",
    "answering",
    "generate",
    "replay",
    "seen_before",
    "warming",
]
