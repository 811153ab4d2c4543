"""How latency and memory grow with the catalogue: ``dvib-bench growth``."""
