"""The subcommands of ``dvib-export``."""
