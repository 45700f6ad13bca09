"""Time and memory of training steps and of attribution, on the model at hand."""
