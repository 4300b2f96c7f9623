"""What is told of the hidden without training: regressions and mixtures, fitted by pooled sums alone."""
