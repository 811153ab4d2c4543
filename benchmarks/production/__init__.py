"""What a service in production must keep up: under overload, for long, with several workers, while it reloads."""

SERVICE = "service"
"""What is run as the service, as ``python -m``."""
