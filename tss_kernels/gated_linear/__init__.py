"""The gated linear map: a linear layer whose frozen weight is switched on and off by trained scores."""
