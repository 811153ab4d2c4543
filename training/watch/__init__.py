"""What a run notices about itself: what each loss term is worth, what is no number any more, what is to be told."""
