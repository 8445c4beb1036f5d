"""Model families: what is particular to each kind of network that is served."""
