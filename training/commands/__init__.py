"""The subcommands of ``dvib-train``, one file each."""
