"""Export: from a checkpoint to a verified bundle. Importing the package loads nothing."""
