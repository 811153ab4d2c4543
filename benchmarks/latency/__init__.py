"""Is a DVIB export as fast as the plain model's? ``dvib-bench latency``."""
