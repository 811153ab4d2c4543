"""Processes: who listens, who answers, who replaces whom."""
