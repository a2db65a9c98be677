"""Where the network runs: one module per engine, and what they share."""
