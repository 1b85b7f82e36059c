# What the types in the stub of _native are called by, for nanobind's stubgen.
^cache_core\._native\.__prefix__$:
    \from cache_core.plan import Move
    \from cache_core.policies import Admission
    \from cache_core.sizing.curves import Distances
