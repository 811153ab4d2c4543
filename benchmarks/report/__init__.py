"""One page and its plots from the other benchmarks' documents: ``dvib-bench report``."""
