"""Where training data come from: token streams in memory, in a store on disk, and mixes of them."""
