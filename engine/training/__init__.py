"""From a data set to an adapter, and to a base: plan, samples, losses, steps, checkpoints."""
