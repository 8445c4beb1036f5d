"""The command line: a client, an all-in-one server for one machine, and key management."""
