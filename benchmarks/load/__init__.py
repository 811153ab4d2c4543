"""What the service costs over HTTP: ``dvib-bench load``."""
