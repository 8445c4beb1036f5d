"""The HTTP layer alone, beside cog's and LitServe's around a model that does nothing."""
