"""The service met with what nobody would write."""
