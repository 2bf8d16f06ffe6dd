"""What a model or a data set is understood as, before anything is trained."""
