"""Networks, the registry of those that can be built by name, and the wrapper through which all are judged."""
