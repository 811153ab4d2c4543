"""Robust trainings beside DVIB, each alone or around it: an adversary for the features, a rule for the steps."""
