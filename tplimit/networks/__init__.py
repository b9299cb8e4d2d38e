"""Networks to try things with: perceptrons, activations, losses, how they scale."""
