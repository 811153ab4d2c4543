"""The ``dvib-bench`` commands, by subject."""
