"""The ways to steer a row, one file for each."""
