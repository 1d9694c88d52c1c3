"""The REST API. Routes read one snapshot or write what the user wants; the reconciler acts."""
