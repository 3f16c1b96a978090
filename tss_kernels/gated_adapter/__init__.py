"""The bottleneck adapter: two gated linear maps around an activation, with the residual."""
