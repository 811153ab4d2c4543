"""The page at ``/``: what the models recommend, side by side, for people."""
