"""FIRST on a virtual clock: the real decisions, model schedulers, model engines, played load. One thread, no I/O."""
